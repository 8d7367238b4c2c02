"""What a visitor enters: fields, presets, the model, the plan beside them."""
