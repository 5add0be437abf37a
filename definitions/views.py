"""Features: which columns, of which entity, how fresh and for how long."""

from featurestore import Aggregation, FeatureView, Field
from featurestore.types import Bool, Float64, Int32, Int64, String

from .entities import aircraft, airport, carrier, route
from .sources import airlines, departures, landings, planes, weather

# Hourly weather. `refresh` says that the view is materialized every hour, so serving sees an observation from the next full hour
# on, plus the source's delay, and training sees exactly the same. After six hours an observation says nothing any more: `ttl`.
# The file calls the airport `origin`; `sql` renames it, since weather belongs to an airport in any role.
airport_weather = FeatureView(
    "airport_weather",
    entities=[airport],
    source=weather,
    sql="SELECT origin AS airport, observed_at, temperature, wind_speed, precipitation, visibility FROM weather",
    fields=[
        Field("temperature", Float64),
        Field("wind_speed", Float64),
        Field("precipitation", Float64),
        Field("visibility", Float64),
    ],
    refresh="1h",
    ttl="6h",
    description="The latest weather at an airport, at most six hours old",
)

# Facts that do not change: a view over a static source has neither refresh nor ttl.
aircraft_facts = FeatureView(
    "aircraft_facts",
    entities=[aircraft],
    source=planes,
    fields=[Field("year_built", Int32), Field("manufacturer", String), Field("seats", Int32)],
    description="What is known of an aircraft",
)

# The last landing of an aircraft, as known at the time that is asked for.
last_landing = FeatureView(
    "last_landing",
    entities=[aircraft],
    source=landings,
    fields=[Field("flight_id", Int64), Field("arrival_delay", Int32), Field("air_time", Int32)],
    refresh="1h",
    ttl="30d",
    description="The last landing of an aircraft",
)

# SQL can also transform: projection, expressions and WHERE over the one source. It gives keys, the source's times and features.
route_departure = FeatureView(
    "route_departure",
    entities=[route],
    source=departures,
    sql="""
        SELECT origin, destination, departed_at,
               departure_delay > 15 AS left_late,
               CAST(distance * 1.609344 AS DOUBLE) AS distance_km
        FROM departures
        WHERE destination IS NOT NULL
    """,
    fields=[Field("left_late", Bool), Field("distance_km", Float64)],
    refresh="1h",
    ttl="7d",
    description="The last departure on a route",
)

carrier_names = FeatureView(
    "carrier_names", entities=[carrier], source=airlines, fields=[Field("name", String)], description="The airline's name"
)

# Statistics over time windows: each aggregation gives a feature for each of its windows, as `arrival_delay_mean_7d`. A window ends
# with what was known at the time that is asked for, in training and in serving alike, and grows by whole hours: `refresh`.
aircraft_delays = FeatureView(
    "aircraft_delays",
    entities=[aircraft],
    source=landings,
    aggregations=[
        Aggregation("*", "count", ["1d", "7d", "30d"], name="landings"),
        Aggregation("arrival_delay", "mean", ["1d", "7d", "30d"]),
        Aggregation("arrival_delay", "max", ["7d"]),
        Aggregation("arrival_delay", "last_n", ["7d"], n=3),
    ],
    refresh="1h",
    description="How late an aircraft has landed of late",
)

carrier_delays = FeatureView(
    "carrier_delays",
    entities=[carrier],
    source=landings,
    aggregations=[
        Aggregation("arrival_delay", "mean", ["1d", "7d", "30d"]),
        Aggregation("arrival_delay", "stddev", ["30d"]),
        # A condition leaves rows out, as if the column were null in them.
        Aggregation("*", "count", ["1d", "7d"], where="arrival_delay > 15", name="late_landings"),
        Aggregation("tail_number", "count_distinct", ["1d"], name="aircraft"),
    ],
    refresh="1h",
    description="How late a carrier's flights have landed of late",
)

route_delays = FeatureView(
    "route_delays",
    entities=[route],
    source=landings,
    aggregations=[
        Aggregation("arrival_delay", "mean", ["1d", "7d", "30d"]),
        # An expression stands for the column: minutes in the air for each hundred miles.
        Aggregation("slowness", "mean", ["30d"], sql="100.0 * air_time / distance"),
    ],
    refresh="1h",
    description="How late flights on a route have landed of late",
)
