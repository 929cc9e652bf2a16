"""Nothing to declare: the installed project registers its pytest plugin itself (``pyproject.toml``)."""
