/** Queues on Redis while workers, publishers and Redis die, stop and lose their connections. */
import { spawn } from "node:child_process"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as ManagedRuntime from "effect/ManagedRuntime"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import { EventQueue } from "../../src/index.ts"
import * as RedisServer from "../servers/RedisServer.ts"
import * as TcpProxy from "../servers/TcpProxy.ts"
import { type Event, FaultJob, layer, leaseMillis } from "./queue-worker.ts"

const script = (name: string) => new URL(name, import.meta.url).pathname

/** A worker in a process of its own, that is taking jobs. */
const startWorker = (server: RedisServer.RedisServer, url = server.url, lease = leaseMillis) =>
  Effect.gen(function* () {
    const worker = yield* Effect.acquireRelease(
      Effect.sync(() =>
        spawn(process.execPath, [script("./queue-worker.ts"), url, server.url, String(lease)], {
          stdio: ["ignore", "pipe", "inherit"]
        })
      ),
      (worker) => Effect.sync(() => worker.kill("SIGKILL"))
    )
    yield* Effect.promise(() => {
      const gone = () => new Error(`the worker is gone: ${worker.exitCode ?? worker.signalCode}`)
      return new Promise((ready, fail) => worker.stdout.once("data", ready).once("end", () => fail(gone())))
    })
    return { pid: worker.pid!, signal: (signal: NodeJS.Signals) => Effect.sync(() => void worker.kill(signal)) }
  })

const proxied = (server: RedisServer.RedisServer) =>
  Effect.map(TcpProxy.make({ host: "127.0.0.1", port: server.port }), (proxy) => ({
    ...proxy,
    url: `redis://127.0.0.1:${proxy.port}`
  }))

/** A client of the queue in this process. */
const client = (url: string) =>
  Effect.map(
    Effect.acquireRelease(
      Effect.sync(() => ManagedRuntime.make(layer(url))),
      (runtime) => runtime.disposeEffect
    ),
    (runtime) => {
      const run = <A, E>(effect: Effect.Effect<A, E, EventQueue.EventQueue>) =>
        Effect.promise(() => runtime.runPromise(effect))
      return {
        publish: (id: string, does: "return" | "wait" | "die", maxRetries = 3) =>
          run(EventQueue.publish(FaultJob, { id, does }, { id, maxRetries })),
        depth: run(EventQueue.depth(FaultJob)),
        letters: run(EventQueue.deadLetters(FaultJob))
      }
    }
  )

const events = (server: RedisServer.RedisServer) =>
  Effect.map(server.command("lrange", "events", "0", "-1"), (lines) =>
    (lines as ReadonlyArray<string>).map((line) => JSON.parse(line) as Event)
  )

const until = (what: string, condition: Effect.Effect<boolean>, within = 20_000) =>
  Effect.promise(() =>
    RedisServer.waitUntil(
      () => Effect.runPromise(condition),
      () => `never: ${what}`,
      within
    )
  )

const isAlive = (pid: number) => {
  try {
    return process.kill(pid, 0)
  } catch {
    return false
  }
}

const empty = { ready: 0, delayed: 0, inFlight: 0, dead: 0 }

describe.concurrent("a queue on Redis", () => {
  const test = (
    name: string,
    body: (server: RedisServer.RedisServer) => Effect.Effect<void, never, Scope.Scope>,
    timeout = 60_000
  ) => it.live(name, () => Effect.flatMap(RedisServer.make({ fsync: "always" }), body), timeout)

  /** Waits until the handler of a job has written that down. */
  const seen = (server: RedisServer.RedisServer, id: string, what: Event["what"], count = 1) =>
    Effect.andThen(
      until(
        `${id} ${what} ${count} times`,
        Effect.map(
          events(server),
          (all) => all.filter((event) => event.id === id && event.what === what).length >= count
        )
      ),
      Effect.map(events(server), (all) => all.filter((event) => event.id === id && event.what === what))
    )

  test("gives the job of a worker that is killed in its handler to another within a lease, as attempt 2", (server) =>
    Effect.gen(function* () {
      const queue = yield* client(server.url)
      const first = yield* startWorker(server)
      yield* queue.publish("a", "wait")
      yield* seen(server, "a", "started")
      const second = yield* startWorker(server)
      yield* first.signal("SIGKILL")
      const killed = Date.now()
      const [, again] = yield* seen(server, "a", "started", 2)
      // Generous: what is tested is that no second lease is waited for, nor a poll.
      assert.isBelow(Date.now() - killed, leaseMillis + 2_000)
      assert.deepStrictEqual([again!.attempt, again!.pid], [2, second.pid])
      yield* server.command("set", "go:a", "")
      yield* until(
        "all done",
        Effect.map(queue.depth, (depth) => JSON.stringify(depth) === JSON.stringify(empty))
      )
    }))

  test("runs a job again when its worker is killed between its end and the acknowledgement", (server) =>
    Effect.gen(function* () {
      const queue = yield* client(server.url)
      const proxy = yield* proxied(server)
      const first = yield* startWorker(server, proxy.url)
      yield* queue.publish("a", "wait")
      yield* seen(server, "a", "started")
      yield* proxy.blackhole
      yield* server.command("set", "go:a", "")
      yield* seen(server, "a", "ended")
      yield* first.signal("SIGKILL")
      assert.strictEqual((yield* queue.depth).inFlight, 1, "it was not acknowledged")
      yield* startWorker(server)
      const runs = yield* seen(server, "a", "ended", 2)
      assert.deepStrictEqual(
        runs.map(({ attempt }) => attempt),
        [1, 2]
      )
      yield* until(
        "all done",
        Effect.map(queue.depth, ({ inFlight }) => inFlight === 0)
      )
    }))

  test("has what was published by a process that is killed right after", (server) =>
    Effect.gen(function* () {
      const code = `
        const { FaultJob, layer } = await import(${JSON.stringify(script("./queue-worker.ts"))})
        const { Effect, ManagedRuntime } = await import("effect")
        const { EventQueue } = await import(${JSON.stringify(script("../../src/index.ts"))})
        const runtime = ManagedRuntime.make(layer(${JSON.stringify(server.url)}))
        for (let i = 0; i < 100; i++) {
          await runtime.runPromise(EventQueue.publish(FaultJob, { id: String(i), does: "return" }))
        }
        process.kill(process.pid, "SIGKILL")`
      const publisher = spawn(process.execPath, ["--input-type=module", "-e", code], { stdio: "inherit" })
      yield* Effect.promise(() => new Promise((exited) => publisher.once("exit", exited)))
      assert.strictEqual(publisher.signalCode, "SIGKILL")
      assert.deepStrictEqual(yield* (yield* client(server.url)).depth, { ...empty, ready: 100 })
    }))

  test("loses nothing when Redis is killed and started again from its append-only file", (server) =>
    Effect.gen(function* () {
      const queue = yield* client(server.url)
      yield* startWorker(server)
      yield* queue.publish("running", "wait", 10)
      yield* seen(server, "running", "started")
      const ids = Array.from({ length: 200 }, (_, i) => `job-${i}`)
      const publishing = yield* Effect.forkChild(
        Effect.forEach(ids, (id) =>
          // Again with the same id, until Redis has it.
          Effect.orDie(Effect.retry(Effect.sandbox(queue.publish(id, "return")), Schedule.spaced("50 millis")))
        )
      )
      yield* until(
        "some are published",
        Effect.map(events(server), (all) => all.length > 40)
      )
      yield* server.kill
      yield* Effect.sleep("2 seconds")
      yield* server.start
      yield* Fiber.join(publishing)
      yield* server.command("set", "go:running", "")
      for (const id of [...ids, "running"]) yield* seen(server, id, "ended")
      yield* until(
        "all done",
        Effect.map(queue.depth, (depth) => JSON.stringify(depth) === JSON.stringify(empty))
      )
    }))

  test("refuses the acknowledgement of a worker that was frozen past its lease", (server) =>
    Effect.gen(function* () {
      const queue = yield* client(server.url)
      const first = yield* startWorker(server)
      yield* queue.publish("a", "wait")
      yield* seen(server, "a", "started")
      yield* first.signal("SIGSTOP")
      const second = yield* startWorker(server)
      const [, again] = yield* seen(server, "a", "started", 2)
      assert.deepStrictEqual([again!.attempt, again!.pid], [2, second.pid])
      yield* first.signal("SIGCONT")
      // It learns that the job is not its own any more.
      const [stopped] = yield* seen(server, "a", "interrupted")
      assert.strictEqual(stopped!.pid, first.pid)
      assert.strictEqual((yield* queue.depth).inFlight, 1, "the job is still the second one's")
      yield* server.command("set", "go:a", "")
      const ended = yield* seen(server, "a", "ended")
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
    test(`runs every job once, and without delay, when a worker's connection ${name}`, (server) =>
      Effect.gen(function* () {
        const queue = yield* client(server.url)
        const proxy = yield* proxied(server)
        yield* startWorker(server, proxy.url, 60_000)
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
        yield* until(
          "all done",
          Effect.map(queue.depth, (depth) => JSON.stringify(depth) === JSON.stringify(empty))
        )
        const started = (yield* events(server)).filter(({ what }) => what === "started")
        assert.lengthOf(started, 300)
        assert.isTrue(started.every(({ attempt }) => attempt === 1))
      }))
  }

  test("takes back what was given to an idle worker that cannot hear it", (server) =>
    Effect.gen(function* () {
      const queue = yield* client(server.url)
      const proxy = yield* proxied(server)
      // It has one job, and room for others.
      yield* queue.publish("first", "wait")
      yield* startWorker(server, proxy.url, 60_000)
      yield* seen(server, "first", "started")
      yield* proxy.blackhole
      yield* queue.publish("second", "return")
      assert.strictEqual((yield* queue.depth).inFlight, 2)
      yield* proxy.heal
      const [run] = yield* seen(server, "second", "ended")
      assert.strictEqual(run!.attempt, 1)
      yield* server.command("set", "go:first", "")
      yield* until(
        "all done",
        Effect.map(queue.depth, (depth) => JSON.stringify(depth) === JSON.stringify(empty))
      )
      assert.lengthOf(yield* seen(server, "first", "started"), 1)
    }))

  test("goes on when its scripts are flushed, running every job once", (server) =>
    Effect.gen(function* () {
      const queue = yield* client(server.url)
      yield* startWorker(server)
      for (let i = 0; i < 200; i++) {
        if (i % 20 === 10) yield* server.command("script", "flush")
        yield* queue.publish(`job-${i}`, "return")
      }
      yield* until(
        "all done",
        Effect.map(queue.depth, (depth) => JSON.stringify(depth) === JSON.stringify(empty))
      )
      assert.lengthOf(
        (yield* events(server)).filter(({ what }) => what === "started"),
        200
      )
    }))

  test("goes on when Redis is emptied: what was there is gone, what comes after is run", (server) =>
    Effect.gen(function* () {
      const queue = yield* client(server.url)
      const worker = yield* startWorker(server)
      yield* queue.publish("before", "wait")
      yield* seen(server, "before", "started")
      yield* server.command("flushall")
      // Its worker learns that the job is gone.
      yield* seen(server, "before", "interrupted")
      yield* queue.publish("after", "return")
      const [run] = yield* seen(server, "after", "ended")
      assert.strictEqual(run!.pid, worker.pid)
      assert.deepStrictEqual(yield* queue.depth, empty)
    }))

  test("starts new jobs after the subscriber's connection was killed", (server) =>
    Effect.gen(function* () {
      const queue = yield* client(server.url)
      yield* startWorker(server)
      for (let i = 0; i < 5; i++) {
        yield* server.command("client", "kill", "type", "pubsub")
        yield* queue.publish(`job-${i}`, "return")
        const [{ attempt }] = (yield* seen(server, `job-${i}`, "ended")) as [Event]
        assert.strictEqual(attempt, 1, "what was given to nobody does not count")
      }
      yield* until(
        "all done",
        Effect.map(queue.depth, ({ inFlight }) => inFlight === 0)
      )
    }))

  test("makes a dead letter of a job that kills its process, after its attempts, and nothing else", (server) =>
    Effect.gen(function* () {
      const queue = yield* client(server.url)
      for (let i = 0; i < 20; i++) yield* queue.publish(`before-${i}`, "return", 10)
      yield* queue.publish("poison", "die", 2)
      for (let i = 0; i < 20; i++) yield* queue.publish(`after-${i}`, "return", 10)
      // The first worker ends those before it; with the poison, it dies, as do its successors.
      let letters = yield* queue.letters
      while (letters.length === 0) {
        const { pid } = yield* startWorker(server)
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
        (yield* events(server)).filter(({ id, what }) => id === "poison" && what === "started"),
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
    (server) =>
      Effect.gen(function* () {
        const queue = yield* client(server.url)
        const ids = Array.from({ length: 10_000 }, (_, i) => `job-${i}`)
        const publishing = yield* Effect.forkChild(
          Effect.forEach(ids, (id) => queue.publish(id, "return", 50), { concurrency: 16, discard: true })
        )
        let kills = 0
        let workers = yield* Effect.all([startWorker(server), startWorker(server)], { concurrency: 2 })
        while (kills < 20) {
          yield* Effect.sleep(`${20 + 10 * (kills % 5)} millis`)
          const [next, last] = workers as [(typeof workers)[0], (typeof workers)[0]]
          yield* next.signal("SIGKILL")
          kills++
          workers = [last, yield* startWorker(server)]
        }
        yield* Fiber.join(publishing)
        yield* until(
          "all done",
          Effect.map(queue.depth, ({ inFlight, ready }) => ready + inFlight === 0),
          60_000
        )
        const all = yield* events(server)
        const ended = new Set(all.filter(({ what }) => what === "ended").map(({ id }) => id))
        assert.strictEqual(ended.size, ids.length)
        assert.deepStrictEqual(yield* queue.depth, empty)
      }),
    150_000
  )
})
