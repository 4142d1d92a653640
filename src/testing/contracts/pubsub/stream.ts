/** Topics as streams. */
import { assert, describe } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { PubSub, Topic } from "../../../index.ts"
import type { TestInstance } from "../Backend.ts"
import { type Fixture, listen, Notes, publish, refused } from "./fixture.ts"

export const tests = ({ backend, test, waitFor, within, arrived }: Fixture): void => {
  describe("stream", () => {
    /** Publishes until the stream has begun, then `texts`; gives what came after the beginning. */
    const feed = (from: TestInstance, lists: ReadonlyArray<Array<string>>, texts: ReadonlyArray<string>) =>
      Effect.gen(function* () {
        for (let i = 0; i < 100 && lists.some((list) => list.length === 0); i++) {
          yield* publish(from, "begin")
          yield* backend.advance("20 millis")
        }
        for (const text of texts) yield* publish(from, text)
        yield* waitFor(() => lists.every((list) => list.at(-1) === texts.at(-1)), "the stream's messages")
        return lists.map((list) => list.filter((text) => text !== "begin"))
      })

    test("gives the messages of a topic in order, to every run of it", (cluster) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        const b = yield* cluster.instance()
        const lists: ReadonlyArray<Array<string>> = [[], []]
        for (const list of lists) {
          yield* b
            .run(Stream.runForEach(PubSub.stream(Notes), (text) => Effect.sync(() => list.push(text))))
            .pipe(Effect.forkScoped)
        }
        const texts = Array.from({ length: 20 }, (_, i) => `${i}`)
        assert.deepStrictEqual(yield* feed(a, lists, texts), [texts, texts])
      }))

    test("ends its subscription when it ends", (cluster) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        const b = yield* cluster.instance()
        const list: Array<string> = []
        const run = yield* b
          .run(
            PubSub.stream(Notes).pipe(
              Stream.tap((text) => Effect.sync(() => list.push(text))),
              Stream.takeUntil((text) => text === "last"),
              Stream.runDrain
            )
          )
          .pipe(Effect.forkScoped)
        yield* feed(a, [list], ["1", "last"])
        yield* Fiber.join(run)
        const other = yield* listen(b)
        yield* publish(a, "after")
        yield* arrived(a, other)
        assert.strictEqual(list.at(-1), "last")
      }))

    test("of a slow consumer keeps the newest up to its capacity, and delays nobody else", (cluster) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        const b = yield* cluster.instance()
        const gate = yield* Latch.make(true)
        const list: Array<string> = []
        yield* b
          .run(
            Stream.runForEach(PubSub.stream(Notes, { capacity: 2 }), (text) =>
              Effect.andThen(
                Effect.sync(() => list.push(text)),
                gate.await
              )
            )
          )
          .pipe(Effect.forkScoped)
        yield* feed(a, [list], ["open"])
        const quick = yield* listen(b)
        yield* gate.close
        for (let i = 0; i < 10; i++) yield* publish(a, `${i}`)
        yield* arrived(a, quick)
        assert.strictEqual(quick.length, 10)
        yield* gate.open
        yield* publish(a, "end")
        yield* waitFor(() => list.includes("end"), "the end")
        assert.isBelow(list.slice(list.indexOf("open") + 1).length, 10)
      }))

    test("fails typed on bad input", (cluster) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        const run = (topic: Topic.Topic<string>, options?: PubSub.StreamOptions) =>
          within(1, a.run(Stream.runDrain(PubSub.stream(topic, options))))
        yield* refused(run(Topic.make("", Schema.String)), "channel")
        for (const capacity of [0, -1, 1.5, Number.NaN]) yield* refused(run(Notes, { capacity }), "capacity")
      }))
  })
}
