redis-server --daemonize yes --port 6379
feast apply
feast materialize 2013-01-01T00:00:00 2014-01-01T00:00:00
feast get-online-features --features activity:f0 --entities user_id=7
