/** Bad input, and a broker that is away. */
import { assert, describe } from "@effect/vitest"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Schema from "effect/Schema"
import { PubSub, Topic } from "../../../index.ts"
import { type Fixture, listen, Notes, publish, refused, unavailable } from "./fixture.ts"

export const tests = ({ backend, test, waitFor, within, arrived }: Fixture): void => {
  describe("bad input is a typed error that names the field", () => {
    test("an empty or endless channel", (cluster) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        for (const name of ["", "x".repeat(10_000)]) {
          const topic = Topic.make(name, Schema.String)
          yield* refused(a.run(PubSub.publish(topic, "text")), "channel")
          yield* refused(a.run(PubSub.publish(topic, "text", { onlySelf: true })), "channel")
          yield* refused(listen(a, topic), "channel")
        }
      }))

    test("a message that its Schema refuses, or that is no JSON; nothing is sent", (cluster) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        const b = yield* cluster.instance()
        const got = yield* listen(b)
        yield* refused(publish(a, 1 as never), "message")
        yield* refused(publish(a, undefined as never, { onlySelf: true }), "message")
        yield* refused(a.run(PubSub.publish(Topic.make("finite", Schema.Finite), Number.NaN)), "message")
        const circular: { self?: unknown } = {}
        circular.self = circular
        const Anything = Topic.make("anything", Schema.Unknown)
        yield* refused(a.run(PubSub.publish(Anything, circular)), "message")
        yield* refused(a.run(PubSub.publish(Anything, 1n)), "message")
        yield* arrived(a, got)
        assert.deepStrictEqual(got, [])
      }))

    test("debounce and capacity", (cluster) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        const bad: ReadonlyArray<Duration.Input> = [
          -1,
          Number.NaN,
          Number.POSITIVE_INFINITY,
          "-1 second",
          "soon" as never
        ]
        for (const duration of bad) {
          yield* refused(listen(a, Notes, { debounce: duration }), "debounce")
          yield* refused(listen(a, Notes, { debounce: { duration } }), "debounce")
        }
        yield* refused(listen(a, Notes, { debounce: null as never }), "debounce")
        for (const maxWait of [0, -1, Number.NaN, "soon" as never]) {
          yield* refused(listen(a, Notes, { debounce: { duration: "1 second", maxWait } }), "debounce.maxWait")
        }
        for (const capacity of [0, -1, 1.5, Number.NaN, Number.POSITIVE_INFINITY]) {
          yield* refused(listen(a, Notes, { capacity }), "capacity")
        }
      }))
  })

  describe("while the broker is away", () => {
    test("publish fails typed within 5 seconds, and works again after", (cluster) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        const b = yield* cluster.instance()
        const got = yield* listen(b)
        yield* a.disconnect
        yield* unavailable(within(6, publish(a, "lost")))
        yield* a.reconnect
        yield* publish(a, "sent")
        yield* waitFor(() => got.includes("sent"), "the message after the reconnect")
      }))

    test("subscribe waits or fails typed, and is never lost", (cluster) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        const b = yield* cluster.instance()
        yield* b.disconnect
        const got: Array<string> = []
        const subscribe = b.run(PubSub.subscribe(Notes, (text) => Effect.sync(() => got.push(text))))
        const first = yield* Effect.forkChild(Effect.exit(subscribe))
        yield* backend.advance("1 second")
        yield* b.reconnect
        const exit = yield* within(6, Fiber.join(first))
        if (Exit.isFailure(exit)) {
          yield* unavailable(exit)
          yield* subscribe
        }
        yield* publish(a, "one")
        yield* arrived(a, got)
        assert.deepStrictEqual(got, ["one"])
      }))

    test("a subscribe that failed leaves nothing behind, and works when tried again in the same scope", (cluster) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        const b = yield* cluster.instance()
        yield* b.disconnect
        const subscribe = listen(b)
        const failures = yield* within(
          6,
          Effect.all([Effect.exit(subscribe), Effect.exit(subscribe)], { concurrency: "unbounded" })
        )
        for (const failure of failures) yield* unavailable(failure)
        yield* unavailable(within(6, subscribe))
        yield* b.reconnect
        const lists = [yield* subscribe, yield* subscribe]
        yield* publish(a, "one")
        yield* publish(b, "own", { onlySelf: true })
        yield* arrived(a, ...lists)
        for (const list of lists) assert.sameMembers(list, ["one", "own"])
      }))

    test("a subscribe interrupted while it waits leaves nothing behind", (cluster) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        const b = yield* cluster.instance()
        yield* b.disconnect
        const abandoned: Array<string> = []
        const fiber = yield* Effect.forkChild(
          b.run(PubSub.subscribe(Notes, (text) => Effect.sync(() => abandoned.push(text))))
        )
        yield* backend.advance("1 second")
        yield* within(6, Fiber.interrupt(fiber))
        yield* b.reconnect
        const got = yield* listen(b)
        yield* publish(a, "one")
        yield* arrived(a, got)
        assert.deepStrictEqual(got, ["one"])
        assert.deepStrictEqual(abandoned, [])
      }))
  })
}
