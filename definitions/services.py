"""What a model asks for: the features of one model version, in order."""

from featurestore import FeatureService

from .on_demand import flight_schedule, weather_by_distance
from .views import (
    aircraft_delays,
    aircraft_facts,
    airport_weather,
    carrier_delays,
    carrier_names,
    last_landing,
    route_delays,
    route_departure,
)

# The airport in the role of the flight's origin: the request's column `origin` stands for the view's key `airport`.
origin_weather = airport_weather.alias("origin_weather", join_keys={"airport": "origin"})

departure_delay_v1 = FeatureService(
    "departure_delay_v1",
    features=[
        origin_weather,
        aircraft_facts[["year_built", "seats"]],
        last_landing[["arrival_delay", "air_time"]],
        route_departure,
        carrier_names,
        aircraft_delays,
        carrier_delays[["arrival_delay_mean_1d", "arrival_delay_mean_7d", "late_landings_1d"]],
        route_delays,
    ],
    description="Will this flight leave late? Asked at its scheduled departure",
)

# The next model takes more: what is computed when it is asked for. Requests have the flight's distance and schedule too.
# `model/features.lock` is what it was trained on (`featurestore lock departure_delay_v2 -o model/features.lock`): a lookup that
# names it is refused when the definitions have changed since.
departure_delay_v2 = FeatureService(
    "departure_delay_v2",
    features=[*departure_delay_v1.features, weather_by_distance, flight_schedule],
    description="Will this flight leave late? With the weather by distance and the schedule",
)
