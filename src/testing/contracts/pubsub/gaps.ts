/** What is told of messages that may have been missed. */
import { assert, describe } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import { Metrics, PubSub } from "../../../index.ts"
import { counting } from "../support.ts"
import { type Fixture, listen, Notes, publish } from "./fixture.ts"

export const tests = ({ backend, test, waitFor, arrived }: Fixture): void => {
  describe("gaps", () => {
    test("a reconnect surfaces a gap to whoever asked for it, before what comes after", (cluster) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        const b = yield* cluster.instance()
        const events: Array<string> = []
        yield* b.run(
          PubSub.subscribe(Notes, (text) => Effect.sync(() => events.push(text)), {
            onGap: Effect.sync(() => events.push("gap"))
          })
        )
        const unasked = yield* listen(b)
        const elsewhere: Array<string> = []
        yield* a.run(PubSub.subscribe(Notes, () => Effect.void, { onGap: Effect.sync(() => elsewhere.push("gap")) }))
        yield* publish(a, "before")
        yield* arrived(a, events, unasked)
        for (const round of ["1", "2"]) {
          yield* b.disconnect
          yield* publish(a, `missed ${round}`)
          yield* b.reconnect
          yield* waitFor(() => events.at(-1) === "gap", "the gap")
          yield* publish(a, `after ${round}`)
          yield* arrived(a, events, unasked)
        }
        assert.deepStrictEqual(events, ["before", "gap", "after 1", "gap", "after 2"])
        assert.deepStrictEqual(unasked, ["before", "after 1", "after 2"])
        assert.deepStrictEqual(elsewhere, [])
      }))

    test("a gap is told before a message that waited for the reconnect", (cluster) =>
      Effect.gen(function* () {
        const b = yield* cluster.instance()
        const events: Array<string> = []
        yield* b.run(
          PubSub.subscribe(Notes, (text) => Effect.sync(() => events.push(text)), {
            onGap: Effect.sync(() => events.push("gap"))
          })
        )
        yield* b.disconnect
        const publishing = yield* Effect.forkChild(Effect.exit(publish(b, "waited", { skipSelf: false })))
        yield* backend.advance("100 millis")
        yield* b.reconnect
        yield* Fiber.join(publishing)
        yield* arrived(b, events)
        assert.strictEqual(events[0], "gap")
      }))

    test("the gap handler runs in turn with the handler; one that fails is logged and the next message runs", (cluster, logs) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        const b = yield* cluster.instance()
        const gate = yield* Latch.make()
        const events: Array<string> = []
        yield* b.run(
          PubSub.subscribe(
            Notes,
            (text) =>
              Effect.gen(function* () {
                events.push(`${text} begins`)
                yield* gate.await
                events.push(`${text} ends`)
              }),
            {
              onGap: Effect.suspend(() => {
                events.push("gap")
                return Effect.fail("no reload")
              })
            }
          )
        )
        yield* publish(a, "one")
        yield* waitFor(() => events.length === 1, "the handler begins")
        yield* b.disconnect
        yield* b.reconnect
        yield* backend.advance("200 millis")
        assert.deepStrictEqual(events, ["one begins"])
        yield* gate.open
        yield* waitFor(() => events.includes("gap"), "the gap")
        yield* publish(a, "two")
        yield* waitFor(() => events.length === 5, "the next message")
        assert.deepStrictEqual(events, ["one begins", "one ends", "gap", "two begins", "two ends"])
        assert.isTrue(
          logs.some(({ annotations, message }) => annotations.channel === "notes" && /gap/i.test(String(message)))
        )
      }))

    test("a subscriber too slow for its capacity loses the oldest, and a gap tells so before the next", (cluster, logs) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        const b = yield* cluster.instance()
        const gaps = yield* counting(Metrics.gaps)
        const gate = yield* Latch.make()
        const events: Array<string> = []
        const slow = (text: string) =>
          Effect.andThen(
            gate.await,
            Effect.sync(() => events.push(text))
          )
        yield* b.run(PubSub.subscribe(Notes, slow, { capacity: 3, onGap: Effect.sync(() => events.push("gap")) }))
        const quick = yield* listen(b)
        for (let i = 1; i <= 10; i++) yield* publish(a, `${i}`)
        yield* waitFor(() => quick.length === 10, "the other subscriber")
        yield* gate.open
        yield* waitFor(() => events.length === 5, "what was kept")
        assert.deepStrictEqual(events, ["1", "gap", "8", "9", "10"])
        assert.strictEqual(yield* gaps, 1)
        assert.strictEqual(logs.filter(({ annotations }) => annotations.capacity === 3).length, 1)
        yield* publish(a, "11")
        yield* waitFor(() => events.length === 6, "the next message")
        assert.strictEqual(events.at(-1), "11")
      }))
  })
}
