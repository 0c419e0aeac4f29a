"use strict";
// What a worker needs of resultd: report what happens to a task, hear what is to stop.

const path = require("node:path");
const { setTimeout: sleep } = require("node:timers/promises");
const grpc = require("@grpc/grpc-js");
const protoLoader = require("@grpc/proto-loader");

const PROTOS = process.env.RESULTD_PROTOS || path.join(__dirname, "../../../protos");
const CALL_MS_MAX = 10_000;
const PAUSE_MS_MIN = 50;
const PAUSE_MS_MAX = 2_000;
const RETRYABLE = new Set([grpc.status.UNAVAILABLE, grpc.status.DEADLINE_EXCEEDED]);

function load() {
  const files = ["result_service.proto", "worker_service.proto"].map((n) => `resultd/v1/${n}`);
  const options = { includeDirs: [PROTOS], longs: Number, enums: String, defaults: true };
  return grpc.loadPackageDefinition(protoLoader.loadSync(files, options)).resultd.v1;
}

class Reporter {
  #results;
  #workers;
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
    const credentials = grpc.credentials.createInsecure();
    this.#results = new v1.ResultService(address, credentials, options);
    this.#workers = new v1.WorkerService(address, credentials, options);
    this.#name = name;
  }

  /** Stores a report. Durable when it resolves; tries again while no server answers. */
  async report(meta) {
    const request = { meta: { worker: this.#name, ...meta } };
    for (let pause = PAUSE_MS_MIN; ; pause = Math.min(2 * pause, PAUSE_MS_MAX)) {
      try {
        const answer = await this.#store(request);
        if (answer.cancelRequested) this.#cancel(meta.taskId);
        return answer;
      } catch (error) {
        if (!RETRYABLE.has(error.code)) throw error;
        await sleep(pause * (0.5 + Math.random() / 2));
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
      this.#results.StoreResult(request, { deadline }, (error, answer) =>
        error ? reject(error) : resolve(answer),
      );
    });
  }

  // One stream for all tasks. Whatever ends it, the next one names what still runs.
  #watch() {
    const stream = this.#workers.WatchRevocations();
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
