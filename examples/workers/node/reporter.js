"use strict";
// What a worker needs of resultd: report what happens to a task, hear what is to stop.
//
// RESULTD_TOKEN, RESULTD_NAMESPACE and RESULTD_CA (a PEM file: TLS) say how to get in.

const fs = require("node:fs");
const path = require("node:path");
const { setTimeout: sleep } = require("node:timers/promises");
const grpc = require("@grpc/grpc-js");
const protoLoader = require("@grpc/proto-loader");

const PROTOS = process.env.RESULTD_PROTOS || path.join(__dirname, "../../../protos");
const CALL_MS_MAX = 10_000;
const PAUSE_MS_MIN = 50;
const PAUSE_MS_MAX = 2_000;
const REFUSED_MS_MIN = 1_000; // what the server asks for in RetryInfo
// CANCELLED is how a server that stops, or is flooded, ends calls it has not begun.
const RETRYABLE = new Set([
  grpc.status.UNAVAILABLE,
  grpc.status.DEADLINE_EXCEEDED,
  grpc.status.CANCELLED,
]);

function load() {
  const files = ["result_service.proto", "worker_service.proto"].map((n) => `resultd/v1/${n}`);
  const options = { includeDirs: [PROTOS], longs: Number, enums: String, defaults: true };
  return grpc.loadPackageDefinition(protoLoader.loadSync(files, options)).resultd.v1;
}

function credentials({ RESULTD_CA } = process.env) {
  if (!RESULTD_CA) return grpc.credentials.createInsecure();
  return grpc.credentials.createSsl(fs.readFileSync(RESULTD_CA));
}

function metadata({ RESULTD_TOKEN, RESULTD_NAMESPACE } = process.env) {
  const sent = new grpc.Metadata();
  if (RESULTD_TOKEN) sent.set("authorization", `Bearer ${RESULTD_TOKEN}`);
  if (RESULTD_NAMESPACE) sent.set("resultd-namespace", RESULTD_NAMESPACE);
  return sent;
}

// The server's refusals carry details, what gRPC itself ends a call with does not.
function refused(error) {
  return error.metadata.get("grpc-status-details-bin").length > 0;
}

// RESOURCE_EXHAUSTED of the server is a full store or quota, and passes; of gRPC itself it
// is a message that is too large, and stays so.
function retryable(error) {
  if (error.code === grpc.status.RESOURCE_EXHAUSTED) return refused(error);
  return RETRYABLE.has(error.code);
}

class Reporter {
  #results;
  #workers;
  #metadata = metadata();
  #name;
  #running = new Map(); // task id to the AbortController of its work
  #stream = null;
  #closed = false;

  constructor(address, name) {
    const v1 = load();
    const options = {
      "grpc.initial_reconnect_backoff_ms": PAUSE_MS_MIN,
      "grpc.max_reconnect_backoff_ms": PAUSE_MS_MAX,
    };
    const secured = credentials();
    this.#results = new v1.ResultService(address, secured, options);
    this.#workers = new v1.WorkerService(address, secured, options);
    this.#name = name;
  }

  /** Stores a report. Durable when it resolves; tries again until a server has room for it. */
  async report(meta) {
    const request = { meta: { worker: this.#name, ...meta } };
    for (let pause = PAUSE_MS_MIN; ; pause = Math.min(2 * pause, PAUSE_MS_MAX)) {
      try {
        const answer = await this.#store(request);
        if (answer.cancelRequested) this.#cancel(meta.taskId);
        return answer;
      } catch (error) {
        if (!retryable(error)) throw error;
        const asked = refused(error) ? REFUSED_MS_MIN : 0;
        await sleep(asked + pause * (0.5 + Math.random() / 2));
      }
    }
  }

  /** Gives a signal that aborts when somebody asks for the task to stop. */
  begin(taskId) {
    const controller = new AbortController();
    this.#running.set(taskId, controller);
    if (this.#stream === null) this.#watch();
    else this.#stream.write({ addTaskIds: [taskId] });
    return controller.signal;
  }

  end(taskId) {
    this.#running.delete(taskId);
    this.#stream?.write({ removeTaskIds: [taskId] });
  }

  close() {
    this.#closed = true;
    this.#stream?.cancel();
    this.#results.close();
    this.#workers.close();
  }

  #cancel(taskId) {
    this.#running.get(taskId)?.abort();
  }

  #store(request) {
    const deadline = Date.now() + CALL_MS_MAX;
    return new Promise((resolve, reject) => {
      this.#results.StoreResult(request, this.#metadata, { deadline }, (error, answer) =>
        error ? reject(error) : resolve(answer),
      );
    });
  }

  // One stream for all tasks. Whatever ends it, the next one names what still runs.
  #watch() {
    const stream = this.#workers.WatchRevocations(this.#metadata);
    this.#stream = stream;
    stream.on("data", ({ revocations }) => {
      for (const { taskId } of revocations) this.#cancel(taskId);
    });
    stream.on("error", () => {}); // "close" follows
    stream.on("close", async () => {
      this.#stream = null;
      await sleep(PAUSE_MS_MIN + Math.random() * PAUSE_MS_MAX);
      if (!this.#closed && this.#stream === null && this.#running.size > 0) this.#watch();
    });
    stream.write({ addTaskIds: [...this.#running.keys()] });
  }
}

module.exports = { Reporter };
