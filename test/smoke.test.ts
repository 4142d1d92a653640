import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { TestClock } from "effect/testing"
import { Cache, EventQueue, Job, Lock, Plugin, PluginHost, PubSub, SyncMessage, Topic } from "../src/index.ts"
import { memory } from "./layers/memory.ts"

it.effect("smoke", () =>
  Effect.gen(function* () {
    const backend = yield* memory.make
    const a = yield* backend.instance()
    const b = yield* backend.instance()
    const T = Topic.make("t", Schema.Struct({ n: Schema.Number }))
    const J = Job.make("j", Schema.Struct({ n: Schema.Number }), { maxRetries: 2 })
    const S = SyncMessage.make("s", Schema.Struct({ n: Schema.Number }))
    const log: Array<string> = []
    yield* a.run(PubSub.subscribe(T, ({ n }) => Effect.sync(() => log.push(`a${n}`))))
    yield* b.run(PubSub.subscribe(T, ({ n }) => Effect.sync(() => log.push(`b${n}`))))
    yield* a.run(PubSub.publish(T, { n: 1 }))
    yield* a.run(PubSub.publish(T, { n: 2 }, { skipSelf: false }))
    assert.deepStrictEqual(log.sort(), ["a2", "b1", "b2"])
    const c = yield* a.run(Cache.make("c", Schema.Struct({ x: Schema.Number })))
    assert.deepStrictEqual(yield* c.wrap("k", Effect.succeed({ x: 1 })), { x: 1 })
    const c2 = yield* b.run(Cache.make("c", Schema.Struct({ x: Schema.Number })))
    assert.deepStrictEqual(yield* c2.wrap("k", Effect.succeed({ x: 2 })), { x: 1 })
    assert.strictEqual(yield* a.run(Lock.runExclusive("l", Effect.succeed(5))), 5)
    let attempts = 0
    yield* b.run(
      EventQueue.subscribe(J, {
        process: () => Effect.suspend(() => (++attempts < 3 ? Effect.fail("no") : Effect.void))
      })
    )
    yield* a.run(EventQueue.publish(J, { n: 1 }))
    yield* TestClock.adjust("10 seconds")
    assert.strictEqual(attempts, 3)
    assert.deepStrictEqual(yield* a.run(EventQueue.depth(J)), { ready: 0, delayed: 0, inFlight: 0, dead: 0 })
    let resyncs = 0
    const got: Array<number> = []
    yield* b.run(
      SyncMessage.subscribe(S, {
        handle: ({ n }) => Effect.sync(() => got.push(n)),
        resync: Effect.sync(() => resyncs++)
      })
    )
    yield* a.run(SyncMessage.publish(S, { n: 1 }))
    yield* TestClock.adjust("1 seconds")
    assert.deepStrictEqual(got, [1])
    assert.strictEqual(resyncs, 1)
    const p = Plugin.make("p", { load: Lock.acquire("x") })
    yield* a.run(PluginHost.make([p]))
  })
)
