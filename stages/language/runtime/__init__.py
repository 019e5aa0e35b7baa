"""What runs a language model in this process, behind `stages.language.session.open_language`: one file an engine."""
