"""Where rows come from: Parquet files, and which of their columns say when a row became true.

The difference between training and serving begins here. A landing is true at `arrived_at`, but the store learns of it later:
`delay` says how much later, and no training row sees it before that.
"""

from featurestore import FileSource

weather = FileSource(
    "weather",
    path="data/weather.parquet",
    event_time="observed_at",
    delay="10m",  # an observation reaches us ten minutes after it was made
    description="Hourly weather at the three airports of New York",
)

# One file, two sources: what is known of a flight when it lands, and when it leaves.
landings = FileSource(
    "landings",
    path="data/flights.parquet",
    event_time="arrived_at",  # the arrival delay is known only now: using it earlier would be leakage
    delay="5m",
    description="Flights, as of their arrival; those that never arrived have no arrival time and are skipped",
)
departures = FileSource(
    "departures",
    path="data/flights.parquet",
    event_time="departed_at",
    delay="5m",
    description="Flights, as of their departure",
)

# No event time: a static table, whose rows are visible always.
planes = FileSource("planes", path="data/planes.parquet", description="Facts about each aircraft")
airlines = FileSource("airlines", path="data/airlines.parquet", description="Names of the airlines")
