"""What a configuration states of the images, and classes by name or number."""

import pytest

from consistency_models.data_spec import DataSpec, class_index, listed

STATED = {"channels": 3, "image_size": 8, "network_classes": 2, "clamp": True, "sigma_data": 0.5, "root": "x"}


def test_it_is_read_from_a_configuration():
    assert DataSpec.of(STATED) == DataSpec(3, 8, 2, True, 0.5, ())
    assert DataSpec.of(STATED).shape == (3, 8, 8)
    assert DataSpec.of(STATED | {"class_names": ["cat", "dog"]}).class_names == ("cat", "dog")
    unconditional = {key: value for key, value in STATED.items() if key != "sigma_data"} | {"network_classes": 0}
    assert DataSpec.of(unconditional | {"class_names": ["cat", "dog"]}) == DataSpec(3, 8, 0, True, None, ())


@pytest.mark.parametrize("names", [["cat"], ["cat", 3], [["cat"], "dog"], {"cat": 1, "dog": 2, "cow": 3}])
def test_names_that_do_not_fit_are_refused(names):
    with pytest.raises(ValueError, match=r"data.class_names must be"):
        DataSpec.of(STATED | {"class_names": names})


ANIMALS, FROM_1 = ("cat", "dog"), tuple(map(str, range(1, 11)))


@pytest.mark.parametrize(
    ("label", "count", "names", "index"),
    [
        (1, 2, ANIMALS, 1),
        ("dog", 2, ANIMALS, 1),
        (3, 10, (), 3),
        (1, 10, FROM_1, 0),
        ("10", 10, FROM_1, 9),
        (10, 10, FROM_1, 9),
        (0, 3, ("3", "a", "b"), 0),
        (3, 4, ("3", "a", "b", "c"), 0),
    ],
)
def test_a_name_comes_before_a_number(label, count, names, index):
    assert class_index(label, count, names) == index


@pytest.mark.parametrize(
    ("label", "count", "names", "allowed"),
    [
        ("cow", 2, ANIMALS, r"a class from 0 to 1, or its name \(0 cat, 1 dog\)"),
        (2, 2, ANIMALS, "a class from 0 to 1"),
        (-1, 2, (), "a class from 0 to 1"),
        (True, 2, (), "a class from 0 to 1"),
        (0, 10, FROM_1, "the name of a class: 1, 2, 3"),
        ("x", 3, ("0", "1", "2"), "a class from 0 to 2, or null"),
    ],
)
def test_other_labels_are_refused(label, count, names, allowed):
    with pytest.raises(ValueError, match=allowed):
        class_index(label, count, names)


def test_long_lists_and_strange_names_make_one_line():
    assert listed(ANIMALS) == "0 cat, 1 dog"
    assert listed(("0", "1")) == "0, 1"
    assert listed([f"c{k}" for k in range(100)]).endswith("19 c19, … (100 classes)")
    assert listed(("a\nb\x1b[31m", "x" * 100)) == f"0 a?b?[31m, 1 {'x' * 60}"
