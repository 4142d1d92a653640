/** Who leaves is gone, also for who asks at that moment. */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import * as TestClock from "effect/testing/TestClock"
import { Cohort, Membership, PubSub } from "../../src/index.ts"
import { MemoryHub } from "../../src/layers/memory/index.ts"

it.effect("an instance that leaves does not answer who asks while it does", () =>
  Effect.gen(function* () {
    const hub = yield* MemoryHub.make
    const instance = (id: string) => Layer.build(Cohort.layerMemory({ hub, id }))
    const [a, b, c] = [yield* instance("a"), yield* instance("b"), yield* instance("c")]
    const staying = yield* Effect.scope
    const leaving = yield* Scope.make()
    const pubsub = yield* Effect.provide(PubSub.PubSub, a)
    yield* Membership.make().pipe(
      Effect.provideService(PubSub.PubSub, {
        ...pubsub,
        // Someone comes, and asks, between the farewell and the end of the subscription.
        publish: (topic, message, options) =>
          Effect.tap(pubsub.publish(topic, message, options), () =>
            (message as { readonly _tag?: string })._tag === "Gone"
              ? Membership.make().pipe(Effect.orDie, Effect.provide(c), Scope.provide(staying))
              : Effect.void
          )
      }),
      Scope.provide(leaving),
      Effect.provide(a)
    )
    const { members } = yield* Effect.provide(Membership.make(), b)
    const ids = Effect.map(members, (members) => members.map(({ id }) => id).sort())
    yield* TestClock.adjust("1 second")
    assert.deepStrictEqual(yield* ids, ["a", "b"])
    yield* Scope.close(leaving, Exit.void)
    yield* TestClock.adjust("1 second")
    assert.deepStrictEqual(yield* ids, ["b", "c"])
  })
)
