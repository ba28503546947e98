"""The chat on the whole screen. Only what lives here knows Textual."""
