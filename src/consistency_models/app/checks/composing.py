"""Composition of configurations by Hydra, with one report of all mistakes in the overrides."""

from __future__ import annotations

import pickle
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import hydra.version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobRuntime, setup_globals
from hydra.errors import MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from consistency_models.app.checks.axes import axes_of, is_grid, wrong_axis
from consistency_models.app.checks.problems import ConfigErrors, one_line, problem, unknown_key
from consistency_models.app.checks.rules import nearest
from consistency_models.app.checks.table import kind_of
from consistency_models.errors import ConfigError, pasteable
from consistency_models.storage.moved_names import current_override
from consistency_models.values import accepts

__all__ = ["Composer"]


class Composer:
    """Compose the configurations of the jobs of a command. The common base of several jobs is composed once.

    Args:
        task: name of the primary configuration.
        conf_dir: the folder of the primary configuration and the groups.
        more: a further folder of configurations, or None.
        searchpath: the overrides of hydra.searchpath, if any.
    """

    def __init__(
        self, task: str, conf_dir: str | Path, more: str | Path | None = None, searchpath: Sequence[str] = ()
    ) -> None:
        hydra.version.setbase("1.3")
        setup_globals()
        JobRuntime().set("name", task)
        search = create_config_search_path(str(conf_dir))
        if more is not None:
            search.prepend("command-line", f"file://{Path(more).absolute()}", SearchPathQuery(provider="schema"))
        self.task = task
        self.loader = ConfigLoaderImpl(search)
        self.parser = OverridesParser.create(self.loader)
        self.searchpath = list(searchpath)
        self._bases: dict[tuple[str, ...], bytes] = {}  # pickled: loading is faster than a deep copy

    @cached_property
    def repository(self) -> Any:
        """The repository of all groups and options, including sweeps/."""
        return self.loader._parse_overrides_and_create_caching_repo(self.task, self.searchpath)[1]

    def parse(self, overrides: Sequence[str]) -> list[Override]:
        """Parse overrides in Hydra's grammar.

        Raises:
            ConfigError: one or more overrides cannot be parsed.
        """
        if "#" in overrides:  # a command that was pasted with its comment into zsh
            comment = " ".join(overrides[overrides.index("#") + 1 :])
            fix = "leave the comment out, or type `setopt interactive_comments` in zsh"
            raise problem(
                "#", comment, "KEY=VALUE in Hydra's grammar", fix, reason="the shell hands comments to commands"
            )
        parsed, problems = [], []
        for override in overrides:
            key, equals, value = override.partition("=")
            try:
                if not key:
                    raise OverrideParseException(override, "no key")
                if (renamed := current_override(override)) != override:
                    print(f"warning: {override} is called {renamed} now", file=sys.stderr)
                    override = renamed
                parsed += self.parser.parse_overrides([override])
            except OverrideParseException:
                quoted = f"quote a value with special characters: {pasteable(key, value)}"
                fix = quoted if equals else f"did you mean {key}=…?"
                problems.append(problem(key, value, "KEY=VALUE in Hydra's grammar", fix))
        if problems:
            raise ConfigErrors(problems)
        return parsed

    def cells(self, overrides: Sequence[Override], config: DictConfig) -> list[list[Override]]:
        """Return the overrides of each job of a multirun; for a search, of the two jobs at the ends of all axes.

        Args:
            overrides: of the command.
            config: the configuration without the swept overrides.

        Raises:
            ConfigError: see `parse`; or sweep_size is not a size of the sweep, or an axis has no values.
        """
        params = [f"{key}={value}" for key, value in axes_of(config).items()]
        ours = [override for override in overrides if not override.is_hydra_override()]
        swept = [*self.parse(params), *ours]
        hydra_overrides = [override for override in overrides if override.is_hydra_override()]
        axes = [override for override in swept if override.is_sweep_override()]
        if problems := [one for axis in axes if (one := wrong_axis(axis, is_grid(config))) is not None]:
            raise ConfigErrors(problems)
        if is_grid(config):
            lists = BasicSweeper.split_arguments(swept, None)[0]
        else:
            last = {override.get_key_element(): override for override in swept}  # later overrides replace earlier ones
            lists = [[f"{key}={_ends(override)[end]}" for key, override in last.items()] for end in (0, -1)]
        return [[*self.parse(lines), *hydra_overrides] for lines in lists]

    def compose(self, overrides: Sequence[Override]) -> DictConfig:
        """Compose the configuration of these overrides as Hydra does, including the part `hydra`.

        Raises:
            ConfigError: unknown groups, options or keys, or invalid values; one line for each.
        """
        problems: list[ConfigError] = []
        groups, values, axes = [], [], []
        for override in overrides:
            if override.is_sweep_override():
                axes.append(override)
            elif override.key_or_group == "hydra.searchpath":
                continue
            elif self._is_group(override):
                wrong = self._wrong_option(override)
                problems += wrong
                groups += [] if wrong else [override]
            else:
                values.append(override)
        config = self._base(tuple(override.input_line for override in groups))
        problems += [self._several_values(override, config) for override in axes]
        problems += [
            problem(group, option, "a file with settings", "choose another file", reason="the file is empty")
            for group, option in config.hydra.runtime.choices.items()
            if option is not None and config.get(group) == {}
        ]
        for override in values:
            try:
                ConfigLoaderImpl._apply_overrides_to_config([override], config)
                config.hydra.overrides.task.append(f"{override.key_or_group}=")  # a value may be an interpolation
            except Exception as error:
                problems.append(self._of_value(override, config, error))
        if problems:
            raise ConfigErrors(problems)
        return config

    def options(self, group: str) -> list[str]:
        """Return the options of a group."""
        return sorted(self.repository.get_group_options(group))

    def contents(self, group: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the options of a group with the content of their files."""
        for option in self.options(group):
            content = self.repository.load_config(f"{group}/{option}").config
            yield option, OmegaConf.to_container(content)

    def _is_group(self, override: Override) -> bool:
        key = override.key_or_group
        return not isinstance(override.value(), dict) and self.repository.group_exists(key) and bool(self.options(key))

    def _wrong_option(self, override: Override) -> list[ConfigError]:
        group, value, options = override.key_or_group, override.value(), self.options(override.key_or_group)
        if override.is_delete():
            return []
        chosen = value if isinstance(value, list) else [value]
        return [
            problem(
                group,
                choice,
                ", ".join(options),
                f"did you mean {group}={meant}?" if (meant := nearest(choice, options, 0.5)) else "",
            )
            for choice in chosen
            if choice not in options
        ]

    def _base(self, groups: tuple[str, ...]) -> DictConfig:
        if groups not in self._bases:
            lines = [*self.searchpath, *groups]
            try:
                self._bases[groups] = pickle.dumps(self.loader.load_configuration(self.task, lines, RunMode.RUN))
            except Exception as error:
                known = groups_of(self._base(())) if groups else []
                raise ConfigErrors([_of_files(error, self.task, groups, known)]) from error
        base: DictConfig = pickle.loads(self._bases[groups])
        return base

    def _several_values(self, override: Override, config: DictConfig) -> ConfigError:
        """Return the problem of several values for a key with one value, in a command without --multirun."""
        if (wrong := wrong_axis(override, in_grid=True)) is not None:
            return wrong
        key, fix = override.get_key_element(), "add --multirun to sweep over them"
        text = override.get_value_string()
        if override.is_choice_sweep() and not self._is_group(override):
            # The list is suggested only if the key takes one.
            listed = self.parser.parse_override(f"{key}=[{','.join(override.sweep_string_iterator())}]")
            before = OmegaConf.select(config, override.key_or_group, throw_on_resolution_failure=False)
            kind = kind_of(self.task, override.key_or_group)
            takes_list = accepts(kind, listed.value()) if kind is not None else isinstance(before, ListConfig)
            fix += f", or write {key}={listed.get_value_string()} for a list" if takes_list else ""
        return problem(key, text, "one value", fix)

    def _of_value(self, override: Override, config: DictConfig, error: Exception) -> ConfigError:
        key, value = override.key_or_group, override.value()
        group, dot, _ = key.partition(".")
        if self.task == "eval" and dot and group in groups_of(config) and config.get(group) is None:
            fix = f"add {group}=NAME, one of {', '.join(self.options(group))}"
            reason = f"{group}=null is that of the run"
            return problem(key, value, f"a key of the option of {group}", fix, reason=reason)
        if str(error).startswith("Could not override"):
            known = [".".join(map(str, path)) for path, _ in leaves(OmegaConf.to_container(config))]
            own = [name for name in known if name.startswith("hydra.") == key.startswith("hydra.")]
            return unknown_key(key, value, own, groups_of(config))
        if override.package is not None:
            return problem(f"{key}@{override.package}", value, f"a group: {', '.join(groups_of(config))}")
        return problem(override.get_key_element(), value, "what can be merged", reason=one_line(error))


def groups_of(config: DictConfig) -> list[str]:
    """Return the names of the config groups that can be overridden, without those of Hydra."""
    names = {str(key).split("@")[0] for key in config.hydra.runtime.choices}
    return sorted(name for name in names if not name.startswith("hydra"))


def plain(config: DictConfig) -> dict[str, Any]:
    """Return the configuration without the part `hydra`, as dicts and lists with unresolved interpolations.

    The grids of a sweep are removed. The checks see them as the overrides of the jobs.
    """
    tree = OmegaConf.to_container(config)
    del tree["hydra"]
    tree.pop("sweep", None)
    return tree


def leaves(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield (path, value) of all values that are neither non-empty mappings nor lists of mappings."""
    if isinstance(tree, dict) and tree:
        items: Iterable[tuple[Any, Any]] = tree.items()
    elif isinstance(tree, list) and any(isinstance(item, dict) for item in tree):
        items = enumerate(tree)
    else:
        yield path, tree
        return
    for key, value in items:
        yield from leaves(value, (*path, key))


def resolved(config: DictConfig, job: int | None = None) -> tuple[dict[str, Any], str]:
    """Return the configuration of a job with resolved interpolations, and the folder of the job; modifies `config`.

    Args:
        config: as composed.
        job: number in a multirun; None for a single run.

    Raises:
        ConfigErrors: an interpolation cannot be resolved.
    """
    folder, mistake = "", None
    try:
        with open_dict(config):
            config.hydra.job.num, config.hydra.job.id = job or 0, str(job or 0)
            HydraConfig.instance().set_config(config)
            try:
                sweep = config.hydra.sweep
                folder = str(config.hydra.run.dir if job is None else f"{sweep.dir}/{sweep.subdir}")
            except Exception as error:  # raised below, unless a key has a more specific error
                mistake = error
            hydra_config = HydraConfig.get()
            OmegaConf.set_readonly(hydra_config, False)
            hydra_config.runtime.output_dir = folder
            del config["hydra"]
        content = OmegaConf.to_container(config, resolve=True)
        content.pop("sweep", None)  # the grids of its sweep
        if mistake is not None:
            raise mistake
        return content, folder
    except Exception as error:
        key = str(getattr(error, "full_key", None) or "hydra.run.dir")
        allowed = "interpolations of keys that exist"
        raise ConfigErrors([problem(key, "${…}", allowed, reason=one_line(error))]) from error
    finally:
        HydraConfig.instance().cfg = None


def _ends(override: Override) -> list[str]:
    """Return the values of an axis, or the ends of an interval."""
    if not override.is_sweep_override():
        return [override.get_value_element_as_str()]
    value = override.value()
    return (
        [str(value.start), str(value.end)] if override.is_interval_sweep() else list(override.sweep_string_iterator())
    )


def _of_files(error: Exception, task: str, groups: tuple[str, ...], known: list[str]) -> ConfigError:
    """Return the problem of an error of Hydra in the composition of files."""
    text = one_line(error)
    where = re.match(r"In '([^']+)'", text)
    asked = f"asked for in {where[1]}.yaml" if where and where[1] != task else f"asked for by {' '.join(groups)}"
    if isinstance(error, MissingConfigException) and error.options:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        meant = nearest(option, error.options, 0.5)
        return problem(group, option, ", ".join(error.options), f"did you mean {meant}?" if meant else "", reason=asked)
    if unused := re.search(r"Could not override '([^']+)'\.(?: Did you mean to override (.+)\?)?", text):
        value = next((line.partition("=")[2] for line in groups if line.startswith(f"{unused[1]}=")), "")
        fix = f"did you mean {unused[2]}={value}?" if unused[2] else ""
        allowed = f"a group of the defaults list: {', '.join(known)}"
        return problem(unused[1], value, allowed, fix, reason="" if fix else asked)
    return problem("config", " ".join([task, *groups]), "files that can be put together", reason=text)
