"""What features describe. An entity names the columns that identify one of its kind, and their types."""

from featurestore import Entity
from featurestore.types import String

airport = Entity("airport", join_keys={"airport": String}, description="An airport, by its three-letter code")
aircraft = Entity("aircraft", join_keys={"tail_number": String}, description="One aircraft, by its registration")
carrier = Entity("carrier", join_keys={"carrier": String}, description="An airline, by its two-letter code")

# A key may have several columns: a route is a pair of airports.
route = Entity("route", join_keys={"origin": String, "destination": String}, description="A pair of airports")
