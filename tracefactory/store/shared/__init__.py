"""A state that several machines share through an object store; each works on a state folder of its own.

    segments/<2 digits>/<sha256>.parquet   completions, as in `store.segments`; named by their content, never changed
    indexes/<hour>/<sha256>.index          the index of a segment, put after it: a segment counts from then on
    retired/<hour>/<sha256>.json           segments that were merged into one, put after it
    batches/<id>.json, <id>.requests       batches at providers that are not fetched
    stages/<stage>-<key16>/manifest.json   the files of a stage's folder with their digests, replaced as a whole
    stages/<stage>-<key16>/<sha256>        one of these files
    runs/<run>/<file>                      the pipeline, the plan and the outcome of a run
    spend/<pipeline>@<version>.json        what every run has spent, by model
    leases/<name>.json                     who writes a stage, spends from a ledger, works on batches, merges segments
    leases/runs/<run>.json                 a run that goes on; it holds what it has taken of the following:
    leases/stages/<stage>-<key16>/<index>-of-<count>.json   who works on a shard (`shards`)
    leases/members/<stage>-<key16>/<count>-<run>.json       who works on a stage in how many shards
    clocks/<run>                           an object whose time stamp tells the time of the store

`objects` is what an object store has to do, `cloud` does it with obstore.
"""
