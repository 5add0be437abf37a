from featurestore import Entity, FeatureService, FeatureView, FileSource
from featurestore.types import Float64, Int64

user = Entity("user", join_keys={"user_id": Int64})
events = FileSource("events", path="events.parquet", event_time="happened_at")
activity = FeatureView("activity", entities=[user], source=events, fields={"f0": Float64})
model = FeatureService("model", features=[activity])
