"""The user's settings: what there is (`schema`), what holds (`load`), and how it is changed (`edit`)."""

from sr_edge.config.load import Config, Moved, RemoteConfig, Setting, load_config

__all__ = ["Config", "Moved", "RemoteConfig", "Setting", "load_config"]
