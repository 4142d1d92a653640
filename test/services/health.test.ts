import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import { TestClock } from "effect/testing"
import { Cohort, Health, SyncMessage } from "../../src/index.ts"
import { MemoryHub } from "../../src/layers/memory/index.ts"

const report = Health.Health.use(({ report }) => report)
const test = (name: string, body: Effect.Effect<void, never, Health.Health | Scope.Scope>) =>
  it.effect(name, () => Effect.provide(body, Health.layer))

describe("Health", () => {
  test(
    "is ready once it has started, and not any more when it stops",
    Effect.gen(function* () {
      const { started, stopping } = yield* Health.Health
      assert.deepStrictEqual(yield* report, { live: true, ready: false, phase: "starting", components: [] })
      yield* started
      assert.deepStrictEqual(yield* report, { live: true, ready: true, phase: "running", components: [] })
      yield* stopping
      assert.deepStrictEqual(yield* report, { live: true, ready: false, phase: "stopping", components: [] })
      yield* started
      assert.isFalse((yield* report).ready)
    })
  )

  test(
    "goes by its components: degraded is ready, down is not, failed is not even live",
    Effect.gen(function* () {
      const { started } = yield* Health.Health
      yield* started
      let finding = Health.up
      yield* Health.register(
        "store",
        Effect.sync(() => finding)
      )
      yield* Health.register("other", Effect.succeed(Health.up))
      const is = Effect.map(report, ({ live, ready }) => [live, ready])
      assert.deepStrictEqual(yield* is, [true, true])
      finding = Health.degraded("slow")
      assert.deepStrictEqual(yield* is, [true, true])
      finding = Health.down("away")
      assert.deepStrictEqual(yield* is, [true, false])
      assert.deepStrictEqual((yield* report).components[0], { component: "store", status: "down", detail: "away" })
      finding = Health.failed("gone")
      assert.deepStrictEqual(yield* is, [false, false])
    })
  )

  test(
    "a check that dies, or takes too long, counts as down; one whose scope has closed does not count",
    Effect.gen(function* () {
      const scope = yield* Scope.make()
      yield* Scope.provide(Health.register("dies", Effect.die(new Error("boom"))), scope)
      yield* Scope.provide(Health.register("hangs", Effect.never), scope)
      const fiber = yield* Effect.forkChild(report)
      yield* TestClock.adjust("2 seconds")
      const { components } = yield* Fiber.join(fiber)
      assert.deepStrictEqual(components, [
        { component: "dies", status: "down", detail: "cannot be checked: Error: boom" },
        { component: "hangs", status: "down", detail: "does not answer within 2 seconds" }
      ])
      yield* Scope.close(scope, Exit.void)
      assert.deepStrictEqual((yield* report).components, [])
    })
  )

  it.effect("registering does nothing where nobody asks for it", () => Health.register("x", Effect.succeed(Health.up)))
})

describe("the health of sync channels", () => {
  it.effect("names the channel whose resync fails, until it succeeds", () =>
    Effect.gen(function* () {
      const health = yield* Health.make
      let broken = true
      const channel = SyncMessage.make("fields", Schema.String)
      const hub = yield* MemoryHub.make
      const start = (id: string) =>
        Layer.build(Layer.provide(Cohort.layerMemory({ id, hub }), Layer.succeed(Health.Health, health)))
      const [a, b] = [yield* start("a"), yield* start("b")]
      const resync = Effect.suspend(() => (broken ? Effect.fail("no database") : Effect.void))
      yield* SyncMessage.subscribe(channel, { handle: () => Effect.void, resync }).pipe(Effect.provide(a))
      yield* SyncMessage.publish(channel, "x").pipe(Effect.provide(b))
      yield* TestClock.adjust("1 second")
      const found = () =>
        Effect.map(health.report, ({ components }) => components.filter(({ status }) => status !== "up"))
      const [finding] = yield* found()
      assert.strictEqual(finding?.component, "sync")
      assert.match(finding?.detail ?? "", /^the resync of "fields" fails: .*no database/)
      broken = false
      yield* TestClock.adjust("1 minute")
      assert.deepStrictEqual(yield* found(), [])
    })
  )
})
