import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import { TestClock } from "effect/testing"
import { Health } from "../../src/index.ts"

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
