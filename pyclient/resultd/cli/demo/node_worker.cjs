"use strict";
// A worker of the demo: node node_worker.cjs HOST:PORT NAME DESCRIPTORS, tasks on stdin.
// DESCRIPTORS is a file with the protocol's FileDescriptorSet. A worker to learn from, one
// that also hears of revocations: examples/workers/node.

const fs = require("node:fs");
const readline = require("node:readline");
const { setTimeout: sleep } = require("node:timers/promises");
const grpc = require("@grpc/grpc-js");
const protoLoader = require("@grpc/proto-loader");

const [address, name, descriptors] = process.argv.slice(2);
const definition = protoLoader.loadFileDescriptorSetFromBuffer(fs.readFileSync(descriptors), {
  enums: String,
});
const { ResultService } = grpc.loadPackageDefinition(definition).resultd.v1;
const results = new ResultService(address, grpc.credentials.createInsecure(), {
  "grpc.initial_reconnect_backoff_ms": 50,
  "grpc.max_reconnect_backoff_ms": 500,
});

function store(meta) {
  const deadline = Date.now() + 10_000;
  return new Promise((resolve, reject) => {
    results.StoreResult({ meta }, { deadline }, (error, answer) =>
      error ? reject(error) : resolve(answer),
    );
  });
}

/** Durable when it resolves; tries again while no server answers. */
async function report(meta) {
  for (let pause = 50; ; pause = Math.min(2 * pause, 1_000)) {
    try {
      return await store(meta);
    } catch (error) {
      // CANCELLED: so a server that stops ends calls it has not begun.
      const { UNAVAILABLE, DEADLINE_EXCEEDED, CANCELLED } = grpc.status;
      const retry = [UNAVAILABLE, DEADLINE_EXCEEDED, CANCELLED];
      if (!retry.includes(error.code)) throw error;
      await sleep(pause * (0.5 + Math.random() / 2));
    }
  }
}

function countWords(path) {
  const text = new TextDecoder("utf-8", { fatal: true }).decode(fs.readFileSync(path));
  return (text.match(/[A-Za-z0-9_]+/g) ?? []).length;
}

function failure({ name: type, message, stack }) {
  return { type, module: "node", message, traceback: stack, language: "node" };
}

async function run(task) {
  const { task_id, group_id, index } = task; // a descriptor set keeps the protocol's own names
  const base = { task_id, group_id, index, attempt: 1, name: "count_words", worker: name };
  await report({ ...base, state: "STATE_RECEIVED" });
  await report({ ...base, state: "STATE_STARTED" });
  let words;
  try {
    words = countWords(task.path);
  } catch (error) {
    return report({ ...base, state: "STATE_FAILURE", failure: failure(error) });
  }
  await report({ ...base, state: "STATE_PROGRESS", progress: { current: 1, total: 2 } });
  await sleep(task.pace * 1000); // the rest of the work, so that there is something to watch
  const data = Buffer.from(JSON.stringify({ path: task.path, words }));
  const value = { content_type: "application/json", data };
  return report({ ...base, state: "STATE_SUCCESS", value });
}

async function main() {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const task = JSON.parse(line);
    const { state } = await run(task);
    console.log(JSON.stringify({ task_id: task.task_id, state: state.replace("STATE_", "") }));
  }
  results.close();
}

main();
