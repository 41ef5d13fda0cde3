"""Templates of the model cards (jinja); `gradiend_hub.hub.card` fills them in."""
