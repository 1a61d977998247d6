"""The base of every error that the project raises for its users' input and surroundings."""


class FullresError(Exception):
    """One line that names the thing, its value and what is allowed."""


class NetworkError(FullresError, ValueError):
    """A network that can't be run as it was asked for."""
