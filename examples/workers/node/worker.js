"use strict";
// Counts the words of files: node worker.js HOST:PORT [NAME]
//
// Tasks come as JSON lines on stdin: {"task_id": "t1", "path": "README.md"}, with `pace`,
// the least seconds to take, `group_id` and `index` if wanted. For each one done a line
// goes to stdout: {"task_id": "t1", "state": "SUCCESS"}.

const fs = require("node:fs/promises");
const os = require("node:os");
const readline = require("node:readline");
const { setTimeout: sleep } = require("node:timers/promises");
const { Reporter } = require("./reporter.js");

const STEPS = 4;

/** Counts the words of UTF-8 text; gives way to `step` after each part. */
async function countWords(path, step) {
  const text = new TextDecoder("utf-8", { fatal: true }).decode(await fs.readFile(path));
  const lines = text.split("\n");
  const size = Math.max(1, Math.ceil(lines.length / STEPS));
  let words = 0;
  for (let start = 0; start < lines.length; start += size) {
    for (const line of lines.slice(start, start + size)) {
      words += (line.match(/[A-Za-z0-9_]+/g) ?? []).length;
    }
    await step(Math.min(start + size, lines.length), lines.length);
  }
  return words;
}

function failure(error) {
  return {
    type: error.name,
    module: "node",
    message: error.message,
    traceback: error.stack ?? "",
    language: "node",
  };
}

async function run(reporter, task) {
  const base = { taskId: task.task_id, name: "count_words", groupId: task.group_id ?? "" };
  if (task.index !== undefined) base.index = task.index;
  const report = (state, fields) => reporter.report({ ...base, state: `STATE_${state}`, ...fields });

  await report("RECEIVED");
  const signal = reporter.begin(task.task_id);
  const step = async (current, total) => {
    await sleep(((task.pace ?? 0) * 1000) / STEPS, undefined, { signal });
    if (current < total) await report("PROGRESS", { progress: { current, total } });
  };
  try {
    await report("STARTED");
    const words = await countWords(task.path, step);
    const value = { contentType: "application/json", data: Buffer.from(JSON.stringify({ words })) };
    return await report("SUCCESS", { value });
  } catch (error) {
    return await report(signal.aborted ? "REVOKED" : "FAILURE", { failure: failure(error) });
  } finally {
    reporter.end(task.task_id);
  }
}

async function main([address = "127.0.0.1:7758", name = `node@${os.hostname()}-${process.pid}`]) {
  const reporter = new Reporter(address, name);
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const task = JSON.parse(line);
    const { state } = await run(reporter, task);
    console.log(JSON.stringify({ task_id: task.task_id, state: state.replace("STATE_", "") }));
  }
  reporter.close();
}

main(process.argv.slice(2));
