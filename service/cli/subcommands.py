"""What holds for every command that has sub-commands and does something alone as well."""

import typer


def require_none_given(context: typer.Context) -> None:
    """A sub-command has options of its own, and would not hear of those typed before it. Raises BadParameter."""
    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        if source is not None and source.name == "COMMANDLINE":
            option = parameter.opts[0]
            command = f"{context.command_path} {context.invoked_subcommand} {option}"
            raise typer.BadParameter(f"write it behind the command: {command}", param_hint=option)
