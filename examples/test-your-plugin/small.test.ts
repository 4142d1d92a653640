import { assert, it } from "@effect/vitest"
import { Effect, Layer } from "effect"
import { TestClock } from "effect/testing"
import { PluginHost } from "cohort"
import { TestEventQueue, TestStores, TestSyncMessage } from "cohort/testing"
import * as Mailing from "./Mailing.ts"

it.effect("send queues a job", () =>
  Effect.gen(function* () {
    yield* Mailing.send("ada@example.org", "hello")
    const [job] = yield* TestEventQueue.jobs(Mailing.Send)
    assert.deepStrictEqual(job?.payload, { to: "ada@example.org", text: "hello" })
    assert.strictEqual(job?.state, "ready")
  }).pipe(Effect.provide(TestEventQueue.layerTest))
)

it.effect("send fails when the queue is away, and nothing is queued", () =>
  Effect.gen(function* () {
    yield* TestEventQueue.fail("publish")
    const error = yield* Effect.flip(Mailing.send("ada@example.org", "hello"))
    assert.strictEqual(error.reason._tag, "Unavailable")
    assert.deepStrictEqual(yield* TestEventQueue.jobs(Mailing.Send), [])
  }).pipe(Effect.provide(TestEventQueue.layerTest))
)

it.effect("unsubscribe tells the other instances", () =>
  Effect.gen(function* () {
    yield* Mailing.unsubscribe("ada@example.org")
    assert.deepStrictEqual(yield* TestSyncMessage.published(Mailing.Unsubscribed), [{ address: "ada@example.org" }])
  }).pipe(Effect.provide([TestSyncMessage.layerTest, Mailing.Wishes.layerMemory, Mailing.Blocklist.layer]))
)

it.effect("a mail that could not be sent is tried again, three times", () =>
  Effect.gen(function* () {
    let tries = 0
    const Mailer = Layer.succeed(Mailing.Mailer, {
      send: () => Effect.suspend(() => Effect.fail(`no connection ${++tries}`))
    })
    const services = Layer.mergeAll(Mailer, Mailing.Wishes.layerMemory, Mailing.Blocklist.layer)
    yield* Layer.build(PluginHost.layer([Mailing.Mailing]).pipe(Layer.provide(services)))

    yield* Mailing.send("ada@example.org", "hello")
    yield* TestClock.adjust("1 minute")
    assert.strictEqual(tries, 4)
    const [job] = yield* TestEventQueue.jobs(Mailing.Send)
    assert.strictEqual(job?.state, "dead")
    assert.include(job?.lastError, "no connection 4")
  }).pipe(Effect.provide(TestStores.layerTest))
)
