/** Locks on RabbitMQ while processes die, stop and lose their connections, and RabbitMQ does too. */
import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Semaphore from "effect/Semaphore"
import type * as Scope from "effect/Scope"
import { Instance } from "../../src/index.ts"
import { AmqpConnection, ReplicatedLog } from "../../src/layers/amqp/index.ts"
import { LockFold } from "../../src/layers/amqp/log/LockFold.ts"
import * as RabbitServer from "../servers/RabbitServer.ts"
import { waitUntil } from "../servers/ServerProcess.ts"
import * as TcpProxy from "../servers/TcpProxy.ts"
import { soak, startWorker, workersOn } from "./locks.ts"

/** Reads along, and waits until that many wait for a lock. */
const watching = (url: string, app: string) =>
  Effect.gen(function* () {
    const context = yield* Effect.orDie(
      Layer.build(
        ReplicatedLog.layer.pipe(
          Layer.provide([AmqpConnection.layer({ url, timeout: "10 seconds" }), Instance.layer({ app })])
        )
      )
    )
    const log = Context.get(context, ReplicatedLog.ReplicatedLog)
    const fold = new LockFold()
    yield* log.attach({
      begin: (first) => fold.begin(first),
      apply: (entry) => void fold.apply(entry, entry.record)
    })
    const lineUp = () => [...fold.locks.values()].reduce((sum, { waiters }) => sum + waiters.size, 0)
    return (count: number) =>
      Effect.promise(() =>
        waitUntil(
          () => lineUp() === count,
          () => `never ${count} waiters, but ${lineUp()}`,
          15_000
        )
      )
  })

const proxied = (url: string) =>
  Effect.map(TcpProxy.make({ host: "127.0.0.1", port: Number(new URL(url).port) }), (proxy) => ({
    ...proxy,
    url: `amqp://127.0.0.1:${proxy.port}`
  }))

/** Milliseconds. Long enough to get through a busy machine, and short to wait for. */
const ttl = 1_500
/** Within which the next holder comes: ttl, some hundredths of a second for those who do not hold it, and a busy machine. */
const within = ttl + 5_000
const pause = (millis: number) => Effect.sleep(millis)

/** Asks until RabbitMQ is there again, and gives the fence. */
const askAgain = (
  { fence, has, hold }: Effect.Success<ReturnType<typeof startWorker>>,
  options: { readonly ttl: number; readonly key?: string }
) =>
  Effect.gen(function* () {
    for (let i = 0; ; i++) {
      const name = `again ${i}`
      yield* hold(name, options)
      const isAnswered = () => has(name, "granted") || has(name, "ended")
      yield* Effect.promise(() => waitUntil(isAnswered, () => `no answer: ${name}`, 15_000))
      if (has(name, "granted")) return yield* fence(name)
    }
  })

let apps = 0
/** Processes that start all at once hold each other up. */
const slots = Semaphore.makeUnsafe(2)

describe.concurrent("a lock on RabbitMQ", () => {
  const test = (name: string, body: (url: string, app: string) => Effect.Effect<void, never, Scope.Scope>) =>
    it.live(
      name,
      () =>
        Effect.flatMap(RabbitServer.sharedUrl, (url) =>
          slots.withPermits(1)(Effect.scoped(body(url, `fault-${process.pid}-${apps++}`)))
        ),
      240_000
    )

  test("whose holder is killed goes to the next within its ttl", (url, app) =>
    Effect.gen(function* () {
      const [a, b] = yield* workersOn(url, 2, app)
      const waiting = yield* watching(url, app)
      yield* a!.hold("first", { ttl })
      const first = yield* a!.fence("first")
      yield* b!.hold("second", { ttl })
      yield* waiting(1)
      // Its ttl has been over once: it was renewed.
      yield* pause(ttl + 500)
      assert.isFalse(b!.has("second", "granted"))
      yield* a!.signal("SIGKILL")
      assert.isAbove(yield* b!.fence("second", within), first)
    }))

  test("whose holder is frozen past its lease goes to the next; thawed, its work is stopped", (url, app) =>
    Effect.gen(function* () {
      const [a, b] = yield* workersOn(url, 2, app)
      const waiting = yield* watching(url, app)
      yield* a!.hold("first", { ttl })
      const first = yield* a!.fence("first")
      yield* b!.hold("second", { ttl })
      yield* waiting(1)
      yield* a!.signal("SIGSTOP")
      const second = yield* b!.fence("second", within)
      assert.isAbove(second, first)
      yield* a!.signal("SIGCONT")
      yield* a!.hears("first", "interrupted")
      assert.strictEqual((yield* a!.hears("first", "ended")).reason, "LockLost")
      // Nothing was taken from the new holder, and the old one can have it again.
      yield* a!.hold("third", { ttl })
      yield* waiting(1)
      yield* pause(ttl)
      assert.isFalse(a!.has("third", "granted"))
      yield* b!.release("second")
      assert.isAbove(yield* a!.fence("third"), second)
      assert.isUndefined((yield* b!.hears("second", "ended")).reason)
    }))

  for (const [how, cutOff] of [
    ["cut off", (proxy: TcpProxy.TcpProxy) => Effect.andThen(proxy.refuse, proxy.reset)],
    ["cut off without a word", (proxy: TcpProxy.TcpProxy) => proxy.blackhole]
  ] as const) {
    test(`whose holder is ${how} goes to the next within its ttl, and its work is stopped`, (url, app) =>
      Effect.gen(function* () {
        const proxy = yield* proxied(url)
        const a = yield* startWorker(proxy.url, app)
        const b = yield* startWorker(url, app)
        const waiting = yield* watching(url, app)
        yield* a.hold("first", { ttl })
        const first = yield* a.fence("first")
        yield* b.hold("second", { ttl })
        yield* waiting(1)
        yield* cutOff(proxy)
        const second = yield* b.fence("second", within)
        assert.isAbove(second, first)
        yield* a.hears("first", "interrupted")
        assert.strictEqual((yield* a.hears("first", "ended")).reason, "LockLost")
        yield* proxy.heal
        yield* b.release("second")
        assert.isUndefined((yield* b.hears("second", "ended")).reason)
        // It may take some time until it knows that it is back.
        assert.isAbove(yield* askAgain(a, { ttl }), second)
      }))
  }

  test("passes over a waiter that was killed at the head of the line", (url, app) =>
    Effect.gen(function* () {
      const [a, b, c] = yield* workersOn(url, 3, app)
      const waiting = yield* watching(url, app)
      yield* a!.hold("first", { ttl: 60_000 })
      yield* a!.fence("first")
      yield* b!.hold("dead", { ttl: 60_000 })
      yield* waiting(1)
      yield* c!.hold("next", { ttl: 60_000 })
      yield* waiting(2)
      yield* b!.signal("SIGKILL")
      yield* waiting(1)
      yield* a!.release("first")
      yield* c!.fence("next")
    }))

  test("stays with its holder when RabbitMQ is killed and restarted; an outage of all timeouts loses it", () =>
    Effect.gen(function* () {
      const server = yield* RabbitServer.make()
      const [a, b] = yield* workersOn(server.url, 2, "fault")
      const waiting = yield* watching(server.url, "fault")
      yield* a!.hold("first", { ttl: 120_000 })
      const first = yield* a!.fence("first")
      yield* a!.hold("short", { ttl, key: "other" })
      yield* a!.fence("short")
      // RabbitMQ 3.10 never brings back a stream that was made within the last moments.
      yield* pause(6_000)
      yield* b!.hold("waiter", { ttl: 120_000 })
      yield* waiting(1)

      yield* server.kill
      assert.strictEqual((yield* a!.hears("short", "ended")).reason, "LockLost")
      assert.strictEqual((yield* b!.hears("waiter", "ended")).reason, "Unavailable")
      yield* b!.hold("meanwhile", { ttl })
      assert.strictEqual((yield* b!.hears("meanwhile", "ended")).reason, "Unavailable")
      yield* server.start

      assert.isAbove(yield* askAgain(b!, { ttl: 120_000, key: "other" }), first)
      yield* b!.hold("second", { ttl: 120_000 })
      yield* waiting(1)
      assert.isFalse(a!.has("first", "interrupted"))
      yield* a!.release("first")
      assert.isUndefined((yield* a!.hears("first", "ended")).reason)
      assert.isAbove(yield* b!.fence("second"), first)
    }))
})

/** The short form of `npm run soak:lock -- --backend amqp`. */
describe("soak", () => {
  it.live("never two good leases while processes are killed, frozen and cut off", () => soak("amqp", 8), 180_000)
})
