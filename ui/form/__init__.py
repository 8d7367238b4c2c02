"""The form: its fields, presets and model field, and the plan beside them."""
