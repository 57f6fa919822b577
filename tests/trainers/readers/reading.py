"""Runs a reader over jobs and prints one line for each row; it works in the environment of every trainer."""

import json
import os
import traceback
from pathlib import Path

import yaml


def settings(job):
    return yaml.safe_load(Path(job["folder"], "train.yaml").read_text())


def each_job(jobs, read):
    for number, job in enumerate(jobs):
        os.chdir(job["folder"])
        try:
            for row in read(job):
                print("ROW " + json.dumps({"job": number, **row}, default=list), flush=True)
        except Exception:  # noqa: BLE001  # what a trainer does with rows that it cannot read is a finding
            print("ROW " + json.dumps({"job": number, "failed": traceback.format_exc()[-2000:]}), flush=True)
