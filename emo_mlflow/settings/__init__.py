"""What a person wrote, as typed settings: the parameter tables, how each text is read, profiles. Start at `sweep.make_config`."""
