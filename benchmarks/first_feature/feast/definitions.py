from datetime import timedelta
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Float64

user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
events = FileSource(name="events", path="events.parquet", timestamp_field="happened_at")
activity = FeatureView(name="activity", entities=[user], ttl=timedelta(0), schema=[Field(name="f0", dtype=Float64)], source=events)
model = FeatureService(name="model", features=[activity])
