"""`smtpraft completion bash|zsh|fish`: a script for the shell, made from the grammar of the command line."""

from __future__ import annotations

import argparse
import shlex
from typing import Final

from smtpraft.cli.grammar import Command, read, walk

SHELLS: Final = ("bash", "zsh", "fish")
_FILES: Final = ("FILE", "DIR", "DATA_DIR", "NEW.toml")


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """Return what `shell` is to source.

    Raises:
        KeyError: we do not know that shell.
    """
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](read(parser))


_BASH: Final = r"""# smtpraft completion for bash: source this file, or put it where bash-completion looks
_smtpraft() {
    local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" path="" i
    for ((i = 1; i < COMP_CWORD; i++)); do
        case "$path/${COMP_WORDS[i]}" in
            @PATHS@) path="$path/${COMP_WORDS[i]}" ;;
        esac
    done
    local words="" values=""
    case "$path" in
@CASES@
    esac
    case "$path $before" in
@VALUES@
        *) COMPREPLY=($(compgen -W "$words" -- "$word")) ;;
    esac
    if [[ ${#COMPREPLY[@]} -eq 0 && $word != -* ]]; then
        COMPREPLY=($(compgen -f -- "$word"))
    fi
}
complete -o filenames -F _smtpraft smtpraft
"""


def _key(command: Command) -> str:
    return "".join(f"/{word}" for word in command.path)


def _candidates(command: Command) -> list[str]:
    words = [below.path[-1] for below in command.actions]
    words += [choice for word in command.words for choice in word.choices]
    return words + [name for option in command.options for name in option.names]


def _bash(root: Command) -> str:
    commands = list(walk(root))
    paths = "|".join(_key(command) for command in commands if command.path)
    cases = [
        f'        "{_key(command)}") words={shlex.quote(" ".join(_candidates(command)))} ;;' for command in commands
    ]
    values = []
    for command in commands:
        for option in command.options:
            if option.value:
                pattern = "|".join(f'"{_key(command)} {name}"' for name in option.names)
                if option.choices:
                    reply = f'COMPREPLY=($(compgen -W {shlex.quote(" ".join(option.choices))} -- "$word"))'
                else:
                    reply = "COMPREPLY=()"
                values.append(f"        {pattern}) {reply} ;;")
    return _BASH.replace("@PATHS@", paths).replace("@CASES@", "\n".join(cases)).replace("@VALUES@", "\n".join(values))


def _zsh_text(text: str) -> str:
    for character in "\\[]:":
        text = text.replace(character, "\\" + character)
    return text


def _zsh(root: Command) -> str:
    lines = ["#compdef smtpraft", "# smtpraft completion for zsh: put this file into a directory of $fpath", ""]
    for command in walk(root):
        name = "_smtpraft" + "".join(f"_{word.replace('-', '_')}" for word in command.path)
        specs = []
        for option in command.options:
            value = ""
            if option.value:
                kind = (
                    "_files" if option.value in _FILES else f"({' '.join(option.choices)})" if option.choices else " "
                )
                value = f":{_zsh_text(option.value)}:{kind}"
            specs += [f"{each}[{_zsh_text(option.help)}]{value}" for each in option.names]
        lines.append(f"{name}() {{")
        if command.actions:
            specs += ["1: :->action", "*:: :->rest"]
            lines += ["    local state line", "    local -a actions", "    actions=("]
            lines += [f"        {shlex.quote(f'{b.path[-1]}:{_zsh_text(b.help)}')}" for b in command.actions]
            lines += ["    )", f"    _arguments -C {' '.join(map(shlex.quote, specs))}", "    case $state in"]
            lines += ["        action) _describe action actions ;;", "        rest)", "            case $words[1] in"]
            for below in command.actions:
                lines.append(f"                {below.path[-1]}) {name}_{below.path[-1].replace('-', '_')} ;;")
            lines += ["            esac ;;", "    esac"]
        else:
            for word in command.words:
                kind = f"({' '.join(word.choices)})" if word.choices else "_files" if word.name in _FILES else " "
                specs.append(f"{'*' if word.many else ''}:{_zsh_text(word.name)}:{kind}")
            lines.append(f"    _arguments {' '.join(map(shlex.quote, specs))}")
        lines += ["}", ""]
    return "\n".join(
        [*lines, 'if [ "$funcstack[1]" = "_smtpraft" ]; then _smtpraft "$@"; else compdef _smtpraft smtpraft; fi', ""]
    )


def _fish(root: Command) -> str:
    lines = ["# smtpraft completion for fish", "complete -c smtpraft -f"]
    for command in walk(root):
        conditions = [f"__fish_seen_subcommand_from {word}" for word in command.path]
        if command.actions:
            names = " ".join(below.path[-1] for below in command.actions)
            conditions.append(f"not __fish_seen_subcommand_from {names}")
        condition = f"-n {shlex.quote('; and '.join(conditions))}" if conditions else ""
        lines += [
            f"complete -c smtpraft {condition} -a {below.path[-1]} -d {shlex.quote(below.help)}"
            for below in command.actions
        ]
        for option in command.options:
            names = " ".join(f"-l {n[2:]}" if n.startswith("--") else f"-s {n[1:]}" for n in option.names)
            value = ""
            if option.value:
                value = f" -x -a {shlex.quote(' '.join(option.choices))}" if option.choices else " -r"
                value += " -F" if option.value in _FILES else ""
            lines.append(f"complete -c smtpraft {condition} {names}{value} -d {shlex.quote(option.help)}")
        for word in command.words:
            if word.choices:
                lines.append(f"complete -c smtpraft {condition} -a {shlex.quote(' '.join(word.choices))}")
            elif word.name in _FILES:
                lines.append(f"complete -c smtpraft {condition} -F")
    return "\n".join(lines) + "\n"
