/** Trailing debounce, by content or key. */
import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import { PubSub, Topic } from "../../../index.ts"
import type { Backend } from "../Backend.ts"
import { describeOn, support } from "../support.ts"
import { type Fixture, listen, Notes, publish } from "./fixture.ts"

export const tests = ({ backend, test, waitFor, within, arrived }: Fixture): void => {
  describe("debounce", () => {
    test("is trailing: equal messages within the window collapse to one call, each starting it again", (cluster) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        const b = yield* cluster.instance()
        const got = yield* listen(b, Notes, { debounce: "1 second" })
        const plain = yield* listen(b)
        for (let i = 0; i < 3; i++) {
          yield* publish(a, "same")
          yield* publish(a, "same")
          yield* waitFor(() => plain.length === 2 * (i + 1), "the messages")
          yield* backend.advance("600 millis")
          assert.deepStrictEqual(got, [])
        }
        yield* waitFor(() => got.length > 0, "the call")
        yield* backend.advance("1500 millis")
        assert.deepStrictEqual(got, ["same"])
        yield* publish(a, "same")
        yield* waitFor(() => got.length === 2, "a call for the next window")
      }))

    test("runs different messages all", (cluster) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        const b = yield* cluster.instance()
        const got = yield* listen(b, Notes, { debounce: "300 millis" })
        for (const text of ["x", "y", "x", "z", "y"]) yield* publish(a, text)
        yield* waitFor(() => got.length === 3, "all three")
        yield* backend.advance("500 millis")
        assert.deepStrictEqual(got, ["x", "z", "y"])
      }))

    test("compares whole contents, not identity or the order of fields", (cluster) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        const b = yield* cluster.instance()
        const Records = Topic.make("records", Schema.Record(Schema.String, Schema.Array(Schema.Number)))
        const got: Array<typeof message> = []
        const message: { readonly [key: string]: ReadonlyArray<number> } = { a: [1], b: [2] }
        yield* b.run(
          PubSub.subscribe(Records, (value) => Effect.sync(() => got.push(value)), { debounce: "300 millis" })
        )
        for (const value of [message, { b: [2], a: [1] }, { a: [1], b: [2, 3] }, { a: [1] }]) {
          yield* a.run(PubSub.publish(Records, value))
        }
        yield* waitFor(() => got.length === 3, "the different contents")
        yield* backend.advance("500 millis")
        assert.deepStrictEqual(got, [message, { a: [1], b: [2, 3] }, { a: [1] }])
      }))

    test("is per subscriber", (cluster) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        const b = yield* cluster.instance()
        const plain = yield* listen(b)
        const short = yield* listen(b, Notes, { debounce: "100 millis" })
        const long = yield* listen(b, Notes, { debounce: "1 second" })
        for (let i = 0; i < 2; i++) {
          yield* publish(a, "same")
          yield* publish(a, "same")
          yield* waitFor(() => short.length === i + 1, "the short window")
          assert.strictEqual(plain.length, 2 * (i + 1))
          assert.deepStrictEqual(long, [])
        }
        yield* waitFor(() => long.length === 1, "the long window")
        yield* backend.advance("1500 millis")
        assert.deepStrictEqual([plain.length, short.length, long.length], [4, 2, 1])
      }))

    test("lets the author choose the key; the last of equals is the one that runs", (cluster) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        const b = yield* cluster.instance()
        const got = yield* listen(b, Notes, {
          debounce: { duration: "300 millis", key: (text) => ({ of: text[0] }) }
        })
        for (const text of ["a1", "b1", "a2", "a3", "b2"]) yield* publish(a, text)
        yield* waitFor(() => got.length === 2, "one call per key")
        yield* backend.advance("500 millis")
        assert.deepStrictEqual(got, ["a3", "b2"])
      }))

    test("passes a message on when the author's key throws, and logs it", (cluster, logs) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        const b = yield* cluster.instance()
        const key = (text: string) => {
          if (text === "bad") throw new Error("no key")
          return text
        }
        const got = yield* listen(b, Notes, { debounce: { duration: "300 millis", key } })
        yield* publish(a, "bad")
        yield* publish(a, "good")
        yield* waitFor(() => got.length === 2, "both")
        assert.deepStrictEqual(got, ["bad", "good"])
        assert.isTrue(logs.some(({ annotations }) => String(annotations.payload).includes("bad")))
      }))

    test("with maxWait, a steady stream of repeats still comes through", (cluster) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        const b = yield* cluster.instance()
        const capped = yield* listen(b, Notes, { debounce: { duration: "1 second", maxWait: "2 seconds" } })
        const endless = yield* listen(b, Notes, { debounce: { duration: "1 second" } })
        for (let i = 0; i < 10; i++) {
          yield* publish(a, "tick")
          yield* backend.advance("500 millis")
        }
        assert.strictEqual(capped.length, 2)
        assert.strictEqual(endless.length, 0)
        yield* waitFor(() => endless.length === 1, "the trailing call")
      }))

    test("zero turns it off", (cluster) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        const b = yield* cluster.instance()
        const lists = [
          yield* listen(b, Notes, { debounce: 0 }),
          yield* listen(b, Notes, { debounce: { duration: "0 seconds" } })
        ]
        yield* publish(a, "same")
        yield* publish(a, "same")
        yield* arrived(a, ...lists)
        for (const list of lists) assert.deepStrictEqual(list, ["same", "same"])
      }))

    test("closing the scope drops what is pending", (cluster) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        const b = yield* cluster.instance()
        const scope = yield* Scope.make()
        const got = yield* listen(b, Notes, { debounce: "500 millis" }).pipe(Scope.provide(scope))
        const stays = yield* listen(b, Notes, { debounce: "500 millis" })
        const plain = yield* listen(b)
        yield* publish(a, "pending")
        yield* arrived(a, plain)
        yield* Scope.close(scope, Exit.void)
        yield* waitFor(() => stays.includes("pending"), "the other subscriber's call")
        yield* backend.advance("1 second")
        assert.deepStrictEqual(got, [])
      }))
  })
}

/**
 * Laws about moments in time, for backends that `advance` virtual time: on a
 * server the network's jitter decides which side of a window a message falls on.
 */
export const timing = (backend: Backend): void => {
  const { scenario } = support(backend)

  describeOn(backend, "PubSub in time", () => {
    interface Pending {
      message: typeof Edit.Type
      due: number
      touched: number
      readonly latest: number
    }
    const Edit = Schema.Struct({ field: Schema.String, number: Schema.Number })
    const window = 1_000

    /** What a trailing debounce calls, and when. */
    const model = (
      edits: ReadonlyArray<{ readonly at: number; readonly message: typeof Edit.Type }>,
      key: (message: typeof Edit.Type) => string,
      maxWait: number
    ) => {
      const pending = new Map<string, Pending>()
      const calls: Array<{ at: number; message: typeof Edit.Type }> = []
      const runUntil = (time: number) => {
        const due = [...pending].filter(([, entry]) => entry.due <= time)
        due.sort(([, x], [, y]) => x.due - y.due || x.touched - y.touched)
        for (const [key, { due: at, message }] of due) {
          calls.push({ at, message })
          pending.delete(key)
        }
      }
      for (const [touched, { at, message }] of edits.entries()) {
        runUntil(at)
        const entry = pending.get(key(message))
        const latest = entry?.latest ?? at + maxWait
        pending.set(key(message), { message, due: Math.min(at + window, latest), touched, latest })
      }
      runUntil(Number.POSITIVE_INFINITY)
      return calls
    }

    it.effect.prop(
      "debounce calls what a model calls, when it calls it",
      {
        edits: Schema.Array(
          Schema.Struct({
            gap: Schema.Literals([0, 0, 1, 200, 500, 999, 1_000, 1_001, 2_500]),
            field: Schema.Literals(["a", "b", "c"])
          })
        ).check(Schema.isMaxLength(25)),
        maxWait: Schema.Literals([500, 1_000, 1_500, 3_000, "none"]),
        byContent: Schema.Boolean
      },
      ({ byContent, edits, maxWait }) =>
        scenario((cluster) =>
          Effect.gen(function* () {
            const a = yield* cluster.instance()
            const b = yield* cluster.instance()
            const Edits = Topic.make("edits", Edit)
            const calls: Array<{ at: number; message: typeof Edit.Type }> = []
            const handler = (message: typeof Edit.Type) =>
              Effect.map(Clock.currentTimeMillis, (at) => calls.push({ at: at - start, message }))
            const start = yield* Clock.currentTimeMillis
            yield* b.run(
              PubSub.subscribe(Edits, handler, {
                debounce: {
                  duration: window,
                  maxWait: maxWait === "none" ? undefined : maxWait,
                  key: byContent ? undefined : ({ field }) => field
                }
              })
            )
            let at = 0
            const sent: Array<{ at: number; message: typeof Edit.Type }> = []
            for (const [i, { field, gap }] of edits.entries()) {
              yield* backend.advance(gap)
              at += gap
              // By content, every third repeat of a field differs.
              const message = { field, number: byContent ? i % 3 : i }
              sent.push({ at, message })
              yield* a.run(PubSub.publish(Edits, message))
            }
            yield* backend.advance("10 seconds")
            const key = (message: typeof Edit.Type) => (byContent ? JSON.stringify(message) : message.field)
            assert.deepStrictEqual(calls, model(sent, key, maxWait === "none" ? Number.POSITIVE_INFINITY : maxWait))
          })
        ),
      { arbitrary: { runs: 150 } }
    )
  })
}
