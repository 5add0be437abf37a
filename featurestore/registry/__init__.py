"""The registry: what is applied, which version of a view a name means, what is materialized, and who may run."""
