CREATE TABLE changes (
	id INTEGER NOT NULL, 
	revision INTEGER NOT NULL, 
	applied_at BIGINT NOT NULL, 
	applied_by TEXT NOT NULL, 
	kind TEXT NOT NULL, 
	name TEXT NOT NULL, 
	action TEXT NOT NULL, 
	fields TEXT NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "changes" VALUES(1,1,1370088000000000,'ann','entity','airport','create','[{"after":{"description":"","join_keys":[{"name":"origin","type":"String"}],"name":"airport","owner":"","tags":[]},"before":null,"field":""}]');
INSERT INTO "changes" VALUES(2,1,1370088000000000,'ann','source','weather','create','[{"after":{"created_time":null,"delay":null,"description":"","event_time":"observed_at","name":"weather","owner":"","path":"weather.parquet","tags":[],"visible_from":"event_time"},"before":null,"field":""}]');
INSERT INTO "changes" VALUES(3,1,1370088000000000,'ann','feature view','a','create','[{"after":{"description":"","entities":["airport"],"fields":[{"name":"temperature","type":"Float64"},{"name":"gusts","type":"Int64"}],"history_start":null,"lookback":null,"name":"a","online":true,"owner":"","refresh":null,"source":"weather","sql":null,"tags":[],"ttl":null},"before":null,"field":""}]');
INSERT INTO "changes" VALUES(4,1,1370088000000000,'ann','feature service','s','create','[{"after":{"description":"","features":[{"features":null,"view":"a"}],"name":"s","owner":"","tags":[]},"before":null,"field":""}]');
INSERT INTO "changes" VALUES(5,2,1370088000000010,'ann','feature view','a','change','[{"after":"6h","before":null,"field":"ttl"}]');
INSERT INTO "changes" VALUES(6,4,1370088000000020,'ann','feature view','a','change','[{"after":"5h","before":"6h","field":"ttl"}]');
CREATE TABLE meta (
	id INTEGER NOT NULL, 
	schema_version INTEGER NOT NULL, 
	project TEXT NOT NULL, 
	revision INTEGER NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "meta" VALUES(1,1,'test',4);
CREATE TABLE objects (
	kind TEXT NOT NULL, 
	name TEXT NOT NULL, 
	spec TEXT, 
	serving TEXT, 
	PRIMARY KEY (kind, name)
);
INSERT INTO "objects" VALUES('entity','airport','{"description":"","join_keys":[{"name":"origin","type":"String"}],"name":"airport","owner":"","tags":[]}','{"description":"","join_keys":[{"name":"origin","type":"String"}],"name":"airport","owner":"","tags":[]}');
INSERT INTO "objects" VALUES('source','weather','{"created_time":null,"delay":null,"description":"","event_time":"observed_at","name":"weather","owner":"","path":"weather.parquet","tags":[],"visible_from":"event_time"}','{"created_time":null,"delay":null,"description":"","event_time":"observed_at","name":"weather","owner":"","path":"weather.parquet","tags":[],"visible_from":"event_time"}');
INSERT INTO "objects" VALUES('feature view','a','{"description":"","entities":["airport"],"fields":[{"name":"temperature","type":"Float64"},{"name":"gusts","type":"Int64"}],"history_start":null,"lookback":null,"name":"a","online":true,"owner":"","refresh":null,"source":"weather","sql":null,"tags":[],"ttl":"5h"}','{"description":"","entities":["airport"],"fields":[{"name":"temperature","type":"Float64"},{"name":"gusts","type":"Int64"}],"history_start":null,"lookback":null,"name":"a","online":true,"owner":"","refresh":null,"source":"weather","sql":null,"tags":[],"ttl":"6h"}');
INSERT INTO "objects" VALUES('feature service','s','{"description":"","features":[{"features":null,"view":"a"}],"name":"s","owner":"","tags":[]}','{"description":"","features":[{"features":null,"view":"a"}],"name":"s","owner":"","tags":[]}');
CREATE TABLE runs (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	version_id INTEGER NOT NULL, 
	interval_start BIGINT, 
	interval_end BIGINT NOT NULL, 
	status TEXT NOT NULL, 
	started_at BIGINT NOT NULL, 
	finished_at BIGINT, 
	report TEXT NOT NULL, 
	error TEXT
);
INSERT INTO "runs" VALUES(1,1,NULL,1370088000000000,'completed',1370088000000000,1370088000000001,'{"rows":3}',NULL);
INSERT INTO "runs" VALUES(2,2,NULL,1370088000000000,'completed',1370088000000000,1370088000000001,'{"rows":3}',NULL);
CREATE TABLE versions (
	id INTEGER NOT NULL, 
	uid TEXT NOT NULL, 
	"view" TEXT NOT NULL, 
	number INTEGER NOT NULL, 
	fingerprint TEXT NOT NULL, 
	spec TEXT NOT NULL, 
	state TEXT NOT NULL, 
	created_at BIGINT NOT NULL, 
	coverage_start BIGINT, 
	coverage_end BIGINT, 
	table_version BIGINT NOT NULL, 
	loaded_run BIGINT, 
	loaded_table_version BIGINT, 
	PRIMARY KEY (id), 
	UNIQUE ("view", number), 
	UNIQUE (uid)
);
INSERT INTO "versions" VALUES(1,'0a1b2c3d','a',1,'7882a4a94e6a1ae1e005b94bccdf1419','{"description":"","entities":[{"description":"","join_keys":[{"name":"origin","type":"String"}],"name":"airport","owner":"","tags":[]}],"fields":[{"name":"temperature","type":"Float64"},{"name":"gusts","type":"Int64"}],"history_start":null,"lookback":null,"name":"a","online":true,"owner":"","refresh":null,"source":{"created_time":null,"delay":null,"description":"","event_time":"observed_at","name":"weather","owner":"","path":"weather.parquet","tags":[],"visible_from":"event_time"},"sql":null,"tags":[],"ttl":null}','replaced',1370088000000000,-62135596800000001,1370088000000000,1,1,1);
INSERT INTO "versions" VALUES(2,'1a1b2c3d','a',2,'903af1afc361ca11765bbb7090b00e8c','{"description":"","entities":[{"description":"","join_keys":[{"name":"origin","type":"String"}],"name":"airport","owner":"","tags":[]}],"fields":[{"name":"temperature","type":"Float64"},{"name":"gusts","type":"Int64"}],"history_start":null,"lookback":null,"name":"a","online":true,"owner":"","refresh":null,"source":{"created_time":null,"delay":null,"description":"","event_time":"observed_at","name":"weather","owner":"","path":"weather.parquet","tags":[],"visible_from":"event_time"},"sql":null,"tags":[],"ttl":"6h"}','serving',1370088000000010,-62135596800000001,1370088000000000,2,2,2);
INSERT INTO "versions" VALUES(3,'2a1b2c3d','a',3,'1d424cb8602f321b7805ace62cba1955','{"description":"","entities":[{"description":"","join_keys":[{"name":"origin","type":"String"}],"name":"airport","owner":"","tags":[]}],"fields":[{"name":"temperature","type":"Float64"},{"name":"gusts","type":"Int64"}],"history_start":null,"lookback":null,"name":"a","online":true,"owner":"","refresh":null,"source":{"created_time":null,"delay":null,"description":"","event_time":"observed_at","name":"weather","owner":"","path":"weather.parquet","tags":[],"visible_from":"event_time"},"sql":null,"tags":[],"ttl":"5h"}','candidate',1370088000000020,NULL,NULL,-1,NULL,NULL);
CREATE INDEX ix_runs_version_id ON runs (version_id);
