/** Queues on Redis while workers, publishers and Redis die, stop and lose their connections. */
import { spawn } from "node:child_process"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import * as RedisServer from "../servers/RedisServer.ts"
import * as TcpProxy from "../servers/TcpProxy.ts"
import { empty, isAlive, make, script } from "./queue-stage.ts"
import { type Event, leaseMillis } from "./queue-worker.ts"

const proxied = (server: RedisServer.RedisServer) =>
  Effect.map(TcpProxy.make({ host: "127.0.0.1", port: server.port }), (proxy) => ({
    ...proxy,
    url: `redis://127.0.0.1:${proxy.port}`
  }))

describe.concurrent("a queue on Redis", () => {
  const test = (
    name: string,
    body: (server: RedisServer.RedisServer, stage: ReturnType<typeof make>) => Effect.Effect<void, never, Scope.Scope>,
    timeout = 90_000
  ) =>
    it.live(
      name,
      () =>
        Effect.flatMap(RedisServer.make({ fsync: "always" }), (server) =>
          body(server, make({ url: server.url, notes: server, app: "fault", timeout: "1 second", within: 40_000 }))
        ),
      timeout
    )

  test("gives the job of a worker that is killed in its handler to another within a lease, as attempt 2", (_, {
    allow,
    client,
    seen,
    startWorker
  }) =>
    Effect.gen(function* () {
      const queue = yield* client
      const first = yield* startWorker()
      yield* queue.publish("a", "wait")
      yield* seen("a", "started")
      const second = yield* startWorker()
      yield* first.signal("SIGKILL")
      const killed = Date.now()
      const [, again] = yield* seen("a", "started", 2)
      // Generous: what is tested is that no second lease is waited for, nor a poll.
      assert.isBelow(Date.now() - killed, leaseMillis + 2_000)
      assert.deepStrictEqual([again!.attempt, again!.pid], [2, second.pid])
      yield* allow("a")
      yield* queue.done()
    }))

  test("runs a job again when its worker is killed between its end and the acknowledgement", (server, {
    allow,
    client,
    seen,
    startWorker,
    until
  }) =>
    Effect.gen(function* () {
      const queue = yield* client
      const proxy = yield* proxied(server)
      const first = yield* startWorker(proxy.url)
      yield* queue.publish("a", "wait")
      yield* seen("a", "started")
      yield* proxy.blackhole
      yield* allow("a")
      yield* seen("a", "ended")
      yield* first.signal("SIGKILL")
      assert.strictEqual((yield* queue.depth).inFlight, 1, "it was not acknowledged")
      yield* startWorker()
      const runs = yield* seen("a", "ended", 2)
      assert.deepStrictEqual(
        runs.map(({ attempt }) => attempt),
        [1, 2]
      )
      yield* until(
        "all done",
        Effect.map(queue.depth, ({ inFlight }) => inFlight === 0)
      )
    }))

  test("has what was published by a process that is killed right after", (server, { client }) =>
    Effect.gen(function* () {
      const code = `
        const { FaultJob, layer } = await import(${JSON.stringify(script("./queue-worker.ts"))})
        const { Effect, ManagedRuntime } = await import("effect")
        const { EventQueue } = await import(${JSON.stringify(script("../../src/index.ts"))})
        const runtime = ManagedRuntime.make(layer(${JSON.stringify(server.url)}, "fault", "1 second"))
        for (let i = 0; i < 100; i++) {
          await runtime.runPromise(EventQueue.publish(FaultJob, { id: String(i), does: "return" }))
        }
        process.kill(process.pid, "SIGKILL")`
      const publisher = spawn(process.execPath, ["--input-type=module", "-e", code], { stdio: "inherit" })
      yield* Effect.promise(() => new Promise((exited) => publisher.once("exit", exited)))
      assert.strictEqual(publisher.signalCode, "SIGKILL")
      assert.deepStrictEqual(yield* (yield* client).depth, { ...empty, ready: 100 })
    }))

  test("loses nothing when Redis is killed and started again from its append-only file", (server, {
    allow,
    client,
    events,
    seen,
    startWorker,
    until
  }) =>
    Effect.gen(function* () {
      const queue = yield* client
      yield* startWorker()
      yield* queue.publish("running", "wait", 10)
      yield* seen("running", "started")
      const ids = Array.from({ length: 200 }, (_, i) => `job-${i}`)
      const publishing = yield* Effect.forkChild(
        Effect.forEach(ids, (id) =>
          // Again with the same id, until Redis has it.
          Effect.orDie(Effect.retry(Effect.sandbox(queue.publish(id, "return", 10)), Schedule.spaced("50 millis")))
        )
      )
      yield* until(
        "some are published",
        Effect.map(events, (all) => all.length > 40)
      )
      yield* server.kill
      yield* Effect.sleep("2 seconds")
      yield* server.start
      yield* Fiber.join(publishing)
      yield* allow("running")
      for (const id of [...ids, "running"]) yield* seen(id, "ended")
      yield* queue.done()
    }))

  test("refuses the acknowledgement of a worker that was frozen past its lease", (_, {
    allow,
    client,
    seen,
    startWorker,
    until
  }) =>
    Effect.gen(function* () {
      const queue = yield* client
      const first = yield* startWorker()
      yield* queue.publish("a", "wait")
      yield* seen("a", "started")
      yield* first.signal("SIGSTOP")
      const second = yield* startWorker()
      const [, again] = yield* seen("a", "started", 2)
      assert.deepStrictEqual([again!.attempt, again!.pid], [2, second.pid])
      yield* first.signal("SIGCONT")
      // It learns that the job is not its own any more.
      const [stopped] = yield* seen("a", "interrupted")
      assert.strictEqual(stopped!.pid, first.pid)
      assert.strictEqual((yield* queue.depth).inFlight, 1, "the job is still the second one's")
      yield* allow("a")
      const ended = yield* seen("a", "ended")
      assert.strictEqual(ended[0]!.pid, second.pid)
      yield* until(
        "all done",
        Effect.map(queue.depth, ({ inFlight }) => inFlight === 0)
      )
    }))

  for (const [name, cut] of [
    ["is reset", (proxy: TcpProxy.TcpProxy) => proxy.reset],
    [
      "goes silent",
      (proxy: TcpProxy.TcpProxy) => Effect.andThen(proxy.blackhole, Effect.delay(proxy.heal, "3 seconds"))
    ]
  ] as const) {
    // No lease runs out meanwhile: what was on its way is done again, or undone.
    test(`runs every job once, and without delay, when a worker's connection ${name}`, (server, {
      client,
      events,
      startWorker
    }) =>
      Effect.gen(function* () {
        const queue = yield* client
        const proxy = yield* proxied(server)
        yield* startWorker(proxy.url, 60_000)
        const publishing = yield* Effect.forkChild(
          Effect.forEach(Array.from({ length: 300 }), (_, i) =>
            Effect.andThen(queue.publish(`job-${i}`, "return"), Effect.sleep("3 millis"))
          )
        )
        for (let i = 0; i < 2; i++) {
          yield* Effect.sleep("300 millis")
          yield* cut(proxy)
        }
        yield* Fiber.join(publishing)
        yield* queue.done()
        const started = (yield* events).filter(({ what }) => what === "started")
        assert.lengthOf(started, 300)
        assert.isTrue(started.every(({ attempt }) => attempt === 1))
      }))
  }

  test("takes back what was given to an idle worker that cannot hear it", (server, {
    allow,
    client,
    seen,
    startWorker
  }) =>
    Effect.gen(function* () {
      const queue = yield* client
      const proxy = yield* proxied(server)
      // It has one job, and room for others.
      yield* queue.publish("first", "wait")
      yield* startWorker(proxy.url, 60_000)
      yield* seen("first", "started")
      yield* proxy.blackhole
      yield* queue.publish("second", "return")
      assert.strictEqual((yield* queue.depth).inFlight, 2)
      yield* proxy.heal
      const [run] = yield* seen("second", "ended")
      assert.strictEqual(run!.attempt, 1)
      yield* allow("first")
      yield* queue.done()
      assert.lengthOf(yield* seen("first", "started"), 1)
    }))

  test("gives nothing to an idle worker that has gone silent long ago", (server, {
    client,
    seen,
    startWorker,
    until
  }) =>
    Effect.gen(function* () {
      const queue = yield* client
      const proxy = yield* proxied(server)
      yield* startWorker(proxy.url, 60_000)
      const idle = "cohort:{fault:queue:job}:idle"
      const workers = Effect.map(server.command("zrange", idle, "0", "-1"), (workers) => workers as Array<string>)
      yield* until(
        "it is idle",
        Effect.map(workers, ({ length }) => length === 1)
      )
      yield* proxy.blackhole
      // As if that had been half a minute ago.
      const [silent] = yield* workers
      yield* server.command("zadd", idle, String((Date.now() - 30_000) * 1_000), silent!)
      yield* startWorker()
      for (const id of ["a", "b"]) {
        yield* queue.publish(id, "return", 0)
        assert.strictEqual((yield* seen(id, "ended"))[0]!.attempt, 1)
      }
      yield* queue.done()
    }))

  test("goes on when its scripts are flushed, running every job once", (server, { client, events, startWorker }) =>
    Effect.gen(function* () {
      const queue = yield* client
      yield* startWorker()
      for (let i = 0; i < 200; i++) {
        if (i % 20 === 10) yield* server.command("script", "flush")
        yield* queue.publish(`job-${i}`, "return")
      }
      yield* queue.done()
      assert.lengthOf(
        (yield* events).filter(({ what }) => what === "started"),
        200
      )
    }))

  test("goes on when Redis is emptied: what was there is gone, what comes after is run", (server, {
    client,
    seen,
    startWorker,
    until
  }) =>
    Effect.gen(function* () {
      const queue = yield* client
      const worker = yield* startWorker()
      yield* queue.publish("before", "wait")
      yield* seen("before", "started")
      yield* server.command("flushall")
      // Its worker learns that the job is gone.
      yield* seen("before", "interrupted")
      yield* queue.publish("after", "return")
      const [run] = yield* seen("after", "ended")
      assert.strictEqual(run!.pid, worker.pid)
      yield* until(
        "all done",
        Effect.map(queue.depth, ({ inFlight }) => inFlight === 0)
      )
      assert.deepStrictEqual(yield* queue.depth, empty)
    }))

  test("starts new jobs after the subscriber's connection was killed", (server, { client, seen, startWorker, until }) =>
    Effect.gen(function* () {
      const queue = yield* client
      yield* startWorker()
      for (let i = 0; i < 5; i++) {
        yield* server.command("client", "kill", "type", "pubsub")
        yield* queue.publish(`job-${i}`, "return")
        const [{ attempt }] = (yield* seen(`job-${i}`, "ended")) as [Event]
        assert.strictEqual(attempt, 1, "what was given to nobody does not count")
      }
      yield* until(
        "all done",
        Effect.map(queue.depth, ({ inFlight }) => inFlight === 0)
      )
    }))

  test("makes a dead letter of a job that kills its process, after its attempts, and nothing else", (_, {
    client,
    events,
    startWorker,
    until
  }) =>
    Effect.gen(function* () {
      const queue = yield* client
      for (let i = 0; i < 20; i++) yield* queue.publish(`before-${i}`, "return", 10)
      yield* queue.publish("poison", "die", 2)
      for (let i = 0; i < 20; i++) yield* queue.publish(`after-${i}`, "return", 10)
      // The first worker ends those before it; with the poison, it dies, as do its successors.
      let letters = yield* queue.letters
      while (letters.length === 0) {
        const { pid } = yield* startWorker()
        yield* until(
          "it dies, or buries the poison",
          Effect.gen(function* () {
            letters = yield* queue.letters
            return letters.length > 0 || !isAlive(pid)
          })
        )
      }
      assert.deepStrictEqual(
        letters.map(({ attempts, id, reason }) => ({ id, attempts, reason })),
        [{ id: "poison", attempts: 3, reason: "WorkerLost" }]
      )
      assert.lengthOf(
        (yield* events).filter(({ id, what }) => id === "poison" && what === "started"),
        3
      )
      yield* until(
        "the others are done",
        Effect.map(queue.depth, ({ inFlight, ready }) => ready + inFlight === 0)
      )
      assert.deepStrictEqual(yield* queue.depth, { ...empty, dead: 1 })
    }))

  test(
    "loses none of 10,000 jobs while 20 workers are killed",
    (_, { client, events, startWorker, until }) =>
      Effect.gen(function* () {
        const queue = yield* client
        const ids = Array.from({ length: 10_000 }, (_, i) => `job-${i}`)
        const publishing = yield* Effect.forkChild(
          Effect.forEach(ids, (id) => queue.publish(id, "return", 50), { concurrency: 16, discard: true })
        )
        let kills = 0
        let workers = yield* Effect.all([startWorker(), startWorker()], { concurrency: 2 })
        while (kills < 20) {
          yield* Effect.sleep(`${20 + 10 * (kills % 5)} millis`)
          const [next, last] = workers as [(typeof workers)[0], (typeof workers)[0]]
          yield* next.signal("SIGKILL")
          kills++
          workers = [last, yield* startWorker()]
        }
        yield* Fiber.join(publishing)
        yield* until(
          "all done",
          Effect.map(queue.depth, ({ inFlight, ready }) => ready + inFlight === 0),
          60_000
        )
        const all = yield* events
        const ended = new Set(all.filter(({ what }) => what === "ended").map(({ id }) => id))
        assert.strictEqual(ended.size, ids.length)
        assert.deepStrictEqual(yield* queue.depth, empty)
      }),
    150_000
  )
})
