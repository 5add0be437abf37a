featurestore apply
featurestore materialize
featurestore get-online model -k user_id=7 --json
