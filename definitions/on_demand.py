"""Features that are computed when they are asked for: from other features, and from what is known of the flight itself.

One function serves training and lookups. It gets numpy arrays, one for each input, without the rows in which an input is null:
those have no value. It must do the same to each row whatever the others are.
"""

from typing import Any

import numpy as np

from featurestore import Field, RequestSource, on_demand_feature_view
from featurestore.types import Float64, Int32, Timestamp

Columns = dict[str, Any]

# What is known of a flight before it leaves, and no view holds: the spine has it in training, the request in serving.
distance = RequestSource("distance", {"distance": Float64})
schedule = RequestSource("schedule", {"scheduled_at": Timestamp, "planned_minutes": Float64})


# Inputs are views, some features of them (`route_delays[["slowness_mean_30d"]]`), or the texts `view:feature`.
@on_demand_feature_view(
    inputs=["origin_weather:wind_speed", "origin_weather:visibility", distance],
    fields=[Field("wind_per_100_miles", Float64), Field("fog_per_100_miles", Float64)],
)
def weather_by_distance(inputs: Columns) -> Columns:
    """Set the weather at the origin against the length of the flight, which makes up for it."""
    hundreds = inputs["distance"] / 100
    return {
        "wind_per_100_miles": inputs["wind_speed"] / hundreds,
        "fog_per_100_miles": (10 - inputs["visibility"]) / hundreds,
    }


@on_demand_feature_view(
    inputs=["route_delays:slowness_mean_30d", distance, schedule],
    fields=[Field("hour", Int32), Field("slack_minutes", Float64)],
)
def flight_schedule(inputs: Columns) -> Columns:
    """Say when the flight leaves, and how many minutes its schedule has beside those in the air."""
    in_the_air = inputs["slowness_mean_30d"] * inputs["distance"] / 100
    day = inputs["scheduled_at"].astype("datetime64[D]")
    return {
        "hour": ((inputs["scheduled_at"] - day) // np.timedelta64(1, "h")).astype(np.int32),
        "slack_minutes": inputs["planned_minutes"] - in_the_air,
    }
