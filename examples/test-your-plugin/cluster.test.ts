import { assert, it } from "@effect/vitest"
import { Effect, Layer } from "effect"
import { TestClock } from "effect/testing"
import { TestCluster } from "cohort/testing"
import * as Mailing from "./Mailing.ts"
import { Outbox } from "./Outbox.ts"

/** Three instances, each with a blocklist of its own; the mailer and the database are shared. */
const cluster = TestCluster.make(3, [Mailing.Mailing], { services: Mailing.Blocklist.layer })
const shared = Layer.merge(Outbox.layer, Mailing.Wishes.layerMemory)

it.effect("a mail whose instance crashes is sent by another one", () =>
  Effect.gen(function* () {
    const { crash, jobs, on } = yield* cluster
    yield* on(0, Mailing.send("ada@example.org", "hello"))
    yield* TestClock.adjust("500 millis")
    const [job] = yield* jobs(Mailing.Send)
    yield* crash(job!.holder!)
    yield* TestClock.adjust("10 seconds")
    assert.lengthOf(yield* Outbox, 0, "the lease of 30 seconds has not run out")
    yield* TestClock.adjust("30 seconds")
    assert.deepStrictEqual(yield* Outbox, [{ to: "ada@example.org", text: "hello" }])
  }).pipe(Effect.provide(shared))
)

it.effect("a mail whose instance freezes is sent by another one, and not finished twice", () =>
  Effect.gen(function* () {
    const { freeze, jobs, on, thaw } = yield* cluster
    yield* on(0, Mailing.send("ada@example.org", "hello"))
    yield* TestClock.adjust("500 millis")
    const frozen = (yield* jobs(Mailing.Send))[0]!.holder!
    yield* freeze(frozen)
    yield* TestClock.adjust("1 minute")
    assert.lengthOf(yield* Outbox, 1)
    yield* thaw(frozen)
    yield* TestClock.adjust("1 minute")
    assert.deepStrictEqual(yield* jobs(Mailing.Send), [])
  }).pipe(Effect.provide(shared))
)

it.effect("an instance that was cut off learns who has unsubscribed meanwhile", () =>
  Effect.gen(function* () {
    const { heal, on, partition } = yield* cluster
    const blocked = Mailing.Blocklist.useSync((blocklist) => [...blocklist])
    yield* partition([0], [1, 2])
    yield* on(1, Mailing.unsubscribe("ada@example.org"))
    yield* TestClock.adjust("1 minute")
    assert.deepStrictEqual(yield* on(0, blocked), [])
    assert.deepStrictEqual(yield* on(2, blocked), ["ada@example.org"])
    yield* heal
    yield* TestClock.adjust("1 second")
    assert.deepStrictEqual(yield* on(0, blocked), ["ada@example.org"])
  }).pipe(Effect.provide(shared))
)
