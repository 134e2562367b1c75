"""The one error that a user is meant to read."""


class UserError(Exception):
    """Something outside the program is wrong (config, data, model, checkpoint, cluster).

    The message is one line that names what is wrong, where, and what would be right. The command line
    prints it without a traceback.
    """
