"""The commands: one thin file each; settings become flags, errors become exit codes."""
