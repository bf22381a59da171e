// graphile-worker with the settings of its documentation's performance page, all verbs in one file.
import { openSync, writeSync } from "node:fs";
import { makeWorkerUtils, run, Logger } from "graphile-worker";

const EVERY = 100;
const lines = openSync(process.env.BENCH_LINES || "/dev/null", "a");
const beats = openSync(process.env.BENCH_BEATS || "/dev/null", "a");
const connectionString = process.env.BENCH_URL;
const size = Number(process.env.BENCH_BATCH || 500);
const logger = new Logger(() => () => {});
let count = 0;

const noop = async ({ at }) => {
  if (at) writeSync(lines, `${process.pid} ${process.hrtime.bigint() - BigInt(at)}\n`);
  else if (++count % EVERY === 0) writeSync(beats, ".");
};

const preset = {
  worker: {
    connectionString,
    concurrentJobs: Math.min(24, size),
    maxPoolSize: 25,
    localQueue: { size },
    completeJobBatchDelay: 0,
    failJobBatchDelay: 0,
    logger,
  },
};

const pings = async (utils, number, interval) => {
  let due = performance.now();
  for (let i = 0; i < number; i++) {
    await utils.addJob("noop", { at: Number(process.hrtime.bigint()) });
    due = Math.max(due + interval, performance.now());
    await new Promise((resolve) => setTimeout(resolve, due - performance.now()));
  }
};

const produce = async (verb, number, width) => {
  const utils = await makeWorkerUtils({ connectionString, logger });
  const started = performance.now();
  if (verb === "setup") await utils.migrate();
  else if (verb === "pings") await pings(utils, number, width);
  else if (verb === "one") {
    for (let i = 0; i < number; i++) await utils.addJob("noop", { at: 0 });
  } else {
    const jobs = Array.from({ length: width }, () => ({ identifier: "noop", payload: { at: 0 } }));
    for (let i = 0; i < number / width; i++) await utils.addJobs(jobs);
  }
  const seconds = (performance.now() - started) / 1000;
  await utils.release();
  console.log(JSON.stringify({ seconds }));
};

const [verb, number, width] = process.argv.slice(2);
if (verb === "work") await run({ preset, taskList: { noop } });
else await produce(verb, Number(number), Number(width));
