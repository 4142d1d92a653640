/** Random crowds: whoever comes, waits, goes or is interrupted. */
import { assert, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { Lock } from "../../../index.ts"
import type { Backend, TestBackend } from "../Backend.ts"
import { eventually } from "../support.ts"
import { type Fixture, hasEnded, isFree, start } from "./fixture.ts"

export const tests = ({ backend, scenario }: Fixture, propertyRuns: number | undefined): void => {
  it.effect.prop(
    "exclusion, order and fences hold, and no trace is left, whoever comes, waits, goes or is interrupted",
    { actors: Schema.Array(Actor).check(Schema.isMinLength(2), Schema.isMaxLength(14)) },
    ({ actors }) => scenario((cluster) => play(backend, cluster, actors)),
    { timeout: 180_000, arbitrary: { runs: propertyRuns ?? 150, size: 30 } }
  )
}

/** Someone who comes, one tick after the one before, asks for the lock in one of the ways, holds it and goes. */
const Actor = Schema.Struct({
  instance: Schema.Literals([0, 1, 2]),
  key: Schema.Literals(["k", "k", "k", "other"]),
  way: Schema.Literals(["acquire", "runExclusive", "tryAcquire", "tryAcquire 3 ticks", "never renewed"]),
  /** In ticks; 0 goes at once. */
  holds: Schema.Literals([0, 0, 1, 2, 5]),
  ends: Schema.Literals(["well", "well", "failing", "dying"]),
  /** In ticks after it came; at the half tick, or with whatever else happens on it. */
  interrupted: Schema.Literals(["never", "never", "never", 0, 0.5, 1, 1.5, 2, 3, 5])
})
type Actor = typeof Actor.Type

/** Milliseconds. */
const tick = 40

interface Grant {
  readonly actor: number
  readonly fence: number
}

const play = (backend: Backend, cluster: TestBackend, actors: ReadonlyArray<Actor>) =>
  Effect.gen(function* () {
    const instances = [yield* cluster.instance(), yield* cluster.instance(), yield* cluster.instance()]
    const grants: Record<Actor["key"], Array<Grant>> = { k: [], other: [] }
    const holders: Record<Actor["key"], number> = { k: 0, other: 0 }

    const work = (actor: Actor, index: number) => (lease: Lock.Lease) =>
      Effect.suspend(() => {
        assert.strictEqual(holders[actor.key], 0, `actor ${index} came while another held "${actor.key}"`)
        holders[actor.key]++
        grants[actor.key].push({ actor: index, fence: lease.fence })
        return Effect.sleep(actor.holds * tick).pipe(
          Effect.andThen(
            Effect.suspend(() =>
              actor.ends === "well" ? Effect.void : actor.ends === "failing" ? Effect.fail("no") : Effect.die("broken")
            )
          ),
          Effect.ensuring(
            Effect.sync(() => {
              holders[actor.key]--
            })
          )
        )
      })

    const act = (actor: Actor, index: number): Effect.Effect<unknown, unknown, Lock.Lock> => {
      const holdIt = work(actor, index)
      switch (actor.way) {
        case "acquire":
          return Effect.scoped(Effect.flatMap(Lock.acquire(actor.key, { ttl: tick * 3 }), holdIt))
        case "runExclusive":
          return Lock.runExclusive(actor.key, holdIt, { ttl: tick * 3 })
        case "never renewed":
          // Loses the lease when it holds longer, and is interrupted by that.
          return Lock.runExclusive(actor.key, holdIt, { ttl: tick * 3, renew: false })
        case "tryAcquire":
        case "tryAcquire 3 ticks":
          return Effect.scoped(
            Effect.flatMap(
              Lock.tryAcquire(actor.key, { timeout: actor.way === "tryAcquire" ? 0 : tick * 3 }),
              Option.match({ onNone: () => Effect.void, onSome: holdIt })
            )
          )
      }
    }

    const fibers: Array<Fiber.Fiber<unknown, unknown>> = []
    for (const [index, actor] of actors.entries()) {
      const fiber = yield* start(instances[actor.instance]!.run(act(actor, index)))
      fibers.push(fiber)
      if (actor.interrupted !== "never") {
        yield* start(Effect.delay(Fiber.interrupt(fiber), actor.interrupted * tick))
      }
      yield* backend.advance(tick)
    }
    yield* eventually(
      backend,
      Effect.sync(() => fibers.every(hasEnded)),
      "the end of every actor",
      { step: tick }
    )

    for (const fiber of fibers) {
      const exit = yield* Fiber.await(fiber)
      const assertion = Exit.isFailure(exit) ? Cause.squash(exit.cause) : undefined
      if (assertion instanceof Error && assertion.name === "AssertionError") throw assertion
    }
    for (const granted of Object.values(grants)) {
      for (let i = 1; i < granted.length; i++) {
        assert.isAbove(granted[i]!.actor, granted[i - 1]!.actor, "first come, first served")
        assert.isAbove(granted[i]!.fence, granted[i - 1]!.fence, "fences increase")
      }
    }
    for (const [index, actor] of actors.entries()) {
      if (actor.interrupted === "never" && !actor.way.startsWith("tryAcquire")) {
        assert.isTrue(
          grants[actor.key].some((grant) => grant.actor === index),
          `actor ${index} was served`
        )
      }
    }
    for (const key of ["k", "other"]) {
      for (const instance of instances) assert.isTrue(yield* isFree(instance, key), "no trace is left")
    }
  })
