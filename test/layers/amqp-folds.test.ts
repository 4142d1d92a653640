/** The folds of the replicated log, without a log: any records, in any order, read by anyone at any pace. */
import { inspect } from "node:util"
import { setFlagsFromString } from "node:v8"
import { runInNewContext } from "node:vm"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { ClaimFold } from "../../src/layers/amqp/log/ClaimFold.ts"
import { CacheFold } from "../../src/layers/amqp/log/CacheFold.ts"
import { authorOf, LockFold, type Outcome, type Position } from "../../src/layers/amqp/log/LockFold.ts"
import { decode, type Envelope, encode, type LogRecord, type QueueRecord } from "../../src/layers/amqp/log/LogRecord.ts"
import { Payload } from "../../src/services/Payload.ts"

const int = (minimum: number, maximum: number) => Schema.Int.check(Schema.isBetween({ minimum, maximum }))
const steps = <S extends Schema.Constraint>(step: S, most: number) => Schema.Array(step).check(Schema.isMaxLength(most))

describe("records of the log", () => {
  const texts = ["", "k", "\n", "\ud800", "é🎉", '"', "[1,2]", "__proto__", "x".repeat(1_000)]
  const Text = Schema.Union([Schema.Literals(texts), Schema.String])
  const Value = Schema.Union([Text, Schema.Number.check(Schema.isFinite()), Schema.Null, Schema.Array(Text)])

  it.effect.prop(
    "come back as they were written",
    { texts: Schema.Array(Text), values: Schema.Array(Value), n: int(0, 2 ** 50), ttl: Schema.NullOr(int(1, 2 ** 40)) },
    ({ n, texts, ttl, values }) =>
      Effect.sync(() => {
        const [a = "a", b = "b"] = texts
        const lives = ttl ?? undefined
        const entries = values.map((value, i) => ({ key: texts[i] ?? a, payload: Payload.fromTree(value) }))
        const payload = entries[0]?.payload ?? Payload.fromTree(null)
        const records: ReadonlyArray<LogRecord> = [
          { kind: "set", space: a, at: n, ttl: lives, entries },
          { kind: "fill", space: a, at: n, ttl: lives, key: b, since: n, payload, again: false },
          { kind: "fill", space: a, at: n, ttl: lives, key: b, since: n, payload, again: true },
          { kind: "del", space: a, keys: texts },
          { kind: "reset", space: a },
          { kind: "request", key: a, id: b, ttl: n, wait: ttl === null, over: lives },
          { kind: "renew", key: a, id: b, ttl: n },
          { kind: "release", key: a, id: b },
          { kind: "expire", key: a, touched: n },
          { kind: "gone", author: a, seen: n },
          {
            kind: "snapshot",
            asOf: n,
            locks: [
              [a, b, n, 1, 2, [[a, n]]],
              [b, a, 1, 2, 3, []]
            ],
            seen: [[a, n]]
          },
          { kind: "claim", channel: a, id: b, token: a, at: n, until: n, dead: ttl === null },
          { kind: "keep", channel: a, id: b, token: a, at: n, until: 0, state: "ended" },
          {
            kind: "kept",
            at: n,
            asOf: n,
            claims: texts.map((id) => ({ channel: a, id, token: b, state: "living" as const, until: n }))
          },
          { kind: "pause", channel: a, until: n },
          { kind: "mark", at: n, epoch: n },
          { kind: "bye" },
          { kind: "ask" },
          { kind: "genesis", asked: n }
        ]
        const plain = ({ record, ...envelope }: Envelope) => JSON.parse(JSON.stringify({ envelope, record }, jsonOf))
        for (const record of records) {
          const envelope = { author: a, seq: n, record }
          const read = decode(encode(envelope))
          assert.isDefined(read)
          assert.deepStrictEqual(plain(read), plain(envelope))
        }
      })
  )

  const jsonOf = (_: string, value: unknown) => (value instanceof Payload ? { json: value.json } : value)

  it("leaves out what it does not know, and what is broken", () => {
    const bodies = ["", "x", "{}", "[]", "[1]", '[2,"a",1,"bye"]', '[1,"a",1,"new kind"]', '[1,"a",1,"reset",1]']
    const cutShort = ['[1,"a",1,"set","s",1,null,[["k",5]]]\n"ab"', '[1,"a",1,"set","s",1,null,[["k",-1]]]\n"ab"']
    for (const body of [...bodies, ...cutShort]) assert.isUndefined(decode(Buffer.from(body)), body)
  })
})

describe("the fold of the caches", () => {
  const Key = Schema.Literals(["a", "b", "c"])
  const Space = Schema.Literals(["s", "s", "t"])
  const Ttl = Schema.NullOr(int(1, 6))
  const Step = Schema.Union([
    Schema.Struct({ op: Schema.Literal("set"), space: Space, keys: Schema.Array(Key), ttl: Ttl }),
    Schema.Struct({ op: Schema.Literal("del"), space: Space, keys: Schema.Array(Key) }),
    Schema.Struct({ op: Schema.Literal("reset"), space: Space }),
    // A load that began some records ago.
    Schema.Struct({ op: Schema.Literal("fill"), space: Space, key: Key, ttl: Ttl, ago: int(0, 6) }),
    // What is there is written again, before the log forgets it.
    Schema.Struct({ op: Schema.Literal("keep"), space: Space, key: Key }),
    Schema.Struct({ op: Schema.Literal("pass"), time: int(1, 3) })
  ])
  type Step = typeof Step.Type

  /** What the records mean, for one who has read all of them and forgets nothing. */
  class Model {
    now = 0
    readonly values = new Map<string, { readonly json: string; readonly ends: number }>()
    private readonly written = new Map<string, number>()

    live(id: string) {
      const value = this.values.get(id)
      return value !== undefined && value.ends > this.now ? value : undefined
    }

    apply(offset: number, record: LogRecord): unknown {
      if (record.kind === "set") {
        for (const { key, payload } of record.entries)
          this.write(offset, `${record.space}/${key}`, payload.json, record)
        return undefined
      }
      if (record.kind === "del") {
        return record.keys.filter((key) => {
          const id = `${record.space}/${key}`
          const there = this.live(id) !== undefined
          this.values.delete(id)
          this.written.set(id, offset)
          return there
        }).length
      }
      if (record.kind === "reset") {
        for (const key of ["a", "b", "c"]) {
          this.values.delete(`${record.space}/${key}`)
          this.written.set(`${record.space}/${key}`, offset)
        }
        return undefined
      }
      if (record.kind !== "fill") throw new Error("not of the caches")
      const id = `${record.space}/${record.key}`
      if ((this.written.get(id) ?? -1) > record.since) return false
      this.values.set(id, { json: record.payload.json, ends: record.at + (record.ttl ?? Number.POSITIVE_INFINITY) })
      return true
    }

    private write(
      offset: number,
      id: string,
      json: string,
      record: { readonly at: number; readonly ttl: number | undefined }
    ) {
      this.values.set(id, { json, ends: record.at + (record.ttl ?? Number.POSITIVE_INFINITY) })
      this.written.set(id, offset)
    }
  }

  const play = (
    todo: ReadonlyArray<Step>,
    each: (offset: number, record: Parameters<CacheFold["apply"]>[1], model: Model, answer: unknown) => void
  ) => {
    const model = new Model()
    let offset = 0
    for (const step of todo) {
      if (step.op === "pass") {
        model.now += step.time
        continue
      }
      const { space } = step
      const kept = step.op === "keep" ? model.live(`${space}/${step.key}`) : undefined
      if (step.op === "keep" && kept === undefined) continue
      const payload = (key: string) => Payload.fromTree(`${key} of ${offset}`)
      const ttl = "ttl" in step ? (step.ttl ?? undefined) : undefined
      const record = (() => {
        switch (step.op) {
          case "set":
            return {
              kind: "set" as const,
              space,
              at: model.now,
              ttl,
              entries: step.keys.map((key) => ({ key, payload: payload(key) }))
            }
          case "del":
            return { kind: "del" as const, space, keys: step.keys }
          case "reset":
            return { kind: "reset" as const, space }
          case "keep":
            return {
              kind: "fill" as const,
              space,
              at: model.now,
              ttl: kept!.ends === Number.POSITIVE_INFINITY ? undefined : kept!.ends - model.now,
              key: step.key,
              since: offset - 1,
              payload: Payload.fromJson(kept!.json)
            }
          case "fill": {
            const since = Math.max(offset - 1 - step.ago, -1)
            return {
              kind: "fill" as const,
              space,
              at: model.now,
              ttl,
              key: step.key,
              since,
              payload: payload(step.key)
            }
          }
        }
      })()
      const answer = model.apply(offset, record)
      each(offset, record, model, answer)
      offset++
    }
  }

  const ids = ["s", "t"].flatMap((space) => ["a", "b", "c"].map((key) => [space, key] as const))
  const at = (now: number) => ({ now, wall: now, read: 0, since: Number.NEGATIVE_INFINITY })

  it.effect.prop(
    "equals a model: values, ttls, keys, and what del and fill answer",
    { todo: steps(Step, 60) },
    ({ todo }) =>
      Effect.sync(() => {
        const fold = new CacheFold(1e9)
        fold.begin(0)
        play(todo, (offset, record, model, answer) => {
          if (record.kind === "fill") {
            assert.strictEqual(fold.mayFill(record.space, record.key, record.since), answer as boolean)
          }
          assert.strictEqual(fold.apply(offset, record, at(model.now)), answer as never)
          for (const [space, key] of ids) {
            const expected = model.live(`${space}/${key}`)
            assert.strictEqual(fold.get(space, key, model.now)?.json, expected?.json)
            assert.strictEqual(fold.ttl(space, key, model.now), expected && expected.ends - model.now)
            assert.strictEqual(fold.keys(space, model.now).includes(key), expected !== undefined)
          }
        })
      }),
    { arbitrary: { runs: 1_000, size: 60 } }
  )

  it.effect.prop(
    "has what is in the model or nothing, never what is out of date: with little memory, begun anywhere, however slow",
    { todo: steps(Step, 60), first: int(0, 30), capacity: int(100, 2_000), remembered: int(1, 3), late: int(0, 5) },
    ({ capacity, first, late, remembered, todo }) =>
      Effect.sync(() => {
        const fold = new CacheFold(capacity, remembered)
        fold.begin(first)
        play(todo, (offset, record, model, answer) => {
          if (offset < first) return
          // Read later than it was written; the model knows only when it was written.
          const now = model.now + late
          const own = fold.apply(offset, record, at(now))
          if (record.kind === "fill" && own === true) assert.isTrue(answer)
          assert.isAtMost(fold.bytes, capacity)
          for (const [space, key] of ids) {
            const found = fold.get(space, key, now)
            const expected = model.values.get(`${space}/${key}`)
            if (found !== undefined) {
              assert.strictEqual(found.json, expected?.json)
              assert.isAbove(expected!.ends, now)
            }
          }
        })
      }),
    { arbitrary: { runs: 5_000, size: 60 } }
  )

  it("ends an entry as the author's clock says, between its ttl after it was surely not written and after it came", () => {
    const fold = new CacheFold(1e6)
    fold.begin(0)
    const set = (offset: number, wall: number, since: number) =>
      fold.apply(
        offset,
        { kind: "set", space: "s", at: 1_000, ttl: 100, entries: [{ key: "k", payload: Payload.fromTree(1) }] },
        { now: 0, wall, read: 0, since }
      )
    const ends = [
      [1_000, -1_000, 100],
      [1_040, -1_000, 60], // late, or ahead of the author
      [900, -1_000, 100], // behind the author
      [1_100, -1_000, undefined],
      [1_040, -20, 80], // ahead of the author
      [5_000, -20, 80],
      [900, -20, 100]
    ] as const
    for (const [i, [wall, since, left]] of ends.entries()) {
      set(i, wall, since)
      assert.strictEqual(fold.ttl("s", "k", 0), left)
    }
  })

  it("tells what was written last before a place in the log, or before a time, and no more than it is asked for", () => {
    const fold = new CacheFold(1e6)
    fold.begin(0)
    const set = (offset: number, key: string, ttl?: number) =>
      fold.apply(
        offset,
        { kind: "set", space: "s", at: offset, ttl, entries: [{ key, payload: Payload.fromTree(offset) }] },
        { now: offset, wall: offset, read: offset, since: offset }
      )
    for (const [offset, key] of ["a", "b", "c", "d"].entries()) set(10 * offset, key, key === "c" ? 100 : undefined)
    set(40, "a")
    set(50, "gone", 1)
    const keys = (read: number, wall: number, bytes = 10_000) =>
      fold.aging({ read, wall }, bytes, 60).map(({ key, ttl }) => [key, ttl])
    assert.deepStrictEqual(keys(0, 0), [])
    assert.deepStrictEqual(keys(21, 0), [
      ["b", undefined],
      ["c", 60]
    ])
    assert.deepStrictEqual(keys(0, 21), keys(21, 0))
    assert.deepStrictEqual(keys(21, 0, 300), [["b", undefined]])
  })

  it("remembers writes of long keys for less long, and refuses what it does not know of", () => {
    const fold = new CacheFold(1e9)
    fold.begin(0)
    const key = (i: number) => `${i}`.padEnd(100_000)
    for (let i = 0; i < 20; i++) fold.apply(i, { kind: "del", space: "s", keys: [key(i)] }, at(0))
    assert.isTrue(fold.mayFill("s", key(15), 15))
    assert.isFalse(fold.mayFill("s", key(15), 14))
    assert.isFalse(fold.mayFill("s", "never written", 5))
    assert.isTrue(fold.mayFill("s", "never written", 15))
  })

  it("holds no more memory than it says, when of many entries that were written at once a few are left", () => {
    setFlagsFromString("--expose-gc")
    const collect = runInNewContext("gc") as () => void
    const used = () => {
      collect()
      const { external, heapUsed } = process.memoryUsage()
      return external + heapUsed
    }
    const capacity = 16_000_000
    const fold = new CacheFold(capacity)
    fold.begin(0)
    const before = used()
    for (let i = 0; i < 40; i++) {
      const entries = Array.from({ length: 500 }, (_, j) => ({
        key: `${i}.${j}`,
        payload: Payload.fromTree("x".repeat(10_000))
      }))
      const record = { kind: "set", space: "s", at: 0, ttl: undefined, entries } as const
      const read = decode(encode({ author: "a", seq: i, record }))!.record
      fold.apply(i, read as typeof record, at(0))
      // One of each is read all the time.
      for (let j = 0; j <= i; j++) fold.get("s", `${j}.499`, 0)
    }
    assert.isAtMost(used() - before, 3 * capacity)
    assert.isAbove(fold.keys("s", 0).length, 500)
  })

  it("drops the entries of the cache that takes most, least recently written first, and spares what is read", () => {
    const fold = new CacheFold(100_000)
    fold.begin(0)
    let offset = 0
    const set = (space: string, key: string, length: number) =>
      fold.apply(
        offset++,
        {
          kind: "set",
          space,
          at: 0,
          ttl: undefined,
          entries: [{ key, payload: Payload.fromTree("x".repeat(length)) }]
        },
        at(0)
      )
    for (let i = 0; i < 10; i++) set("small", `k${i}`, 10)
    for (let i = 0; i < 1_000; i++) {
      set("large", `k${i}`, 1_000)
      assert.isDefined(fold.get("large", "k0", 0))
      assert.isAtMost(fold.bytes, 100_000)
    }
    assert.lengthOf(fold.keys("small", 0), 10)
    const kept = fold.keys("large", 0)
    assert.include(kept, "k0")
    assert.include(kept, "k999")
    assert.notInclude(kept, "k900")
    // What does not fit at all takes nothing from the others, and leaves nothing old.
    set("large", "k999", 200_000)
    assert.isUndefined(fold.get("large", "k999", 0))
    assert.lengthOf(fold.keys("large", 0), kept.length - 1)
  })
})

describe("the fold of the locks", () => {
  const instances = ["a", "b", "c"]
  const Who = Schema.Literals([0, 1, 2])
  const Key = Schema.Literals(["k", "k", "l"])
  const Step = Schema.Union([
    Schema.Struct({ op: Schema.Literal("request"), who: Who, key: Key, ttl: int(2, 6), wait: Schema.Boolean }),
    Schema.Struct({ op: Schema.Literal("request"), who: Who, key: Key, ttl: int(2, 6), wait: Schema.Boolean }),
    Schema.Struct({ op: Schema.Literal("release"), who: Who, nth: int(0, 3) }),
    Schema.Struct({ op: Schema.Literal("renew"), who: Who, nth: int(0, 3), ttl: int(2, 6) }),
    Schema.Struct({ op: Schema.Literal("expire"), who: Who, key: Key }),
    Schema.Struct({ op: Schema.Literal("gone"), who: Who, other: Who }),
    Schema.Struct({ op: Schema.Literal("snapshot"), who: Who }),
    Schema.Struct({ op: Schema.Literal("bye"), who: Who }),
    // Somebody reads on, by some records or to the end.
    Schema.Struct({ op: Schema.Literal("read"), who: Who, count: int(1, 40) }),
    Schema.Struct({ op: Schema.Literal("read"), who: Who, count: int(1, 40) }),
    Schema.Struct({ op: Schema.Literal("pass"), time: int(1, 4) })
  ])
  type Step = typeof Step.Type

  interface Written {
    readonly author: string
    readonly record: LogRecord
    /** When it was sent, which is when it was appended here: the latest it can have been. */
    readonly sent: number
    /** The offset that its author had read up to. */
    readonly read: number
  }

  /** What is equal on all instances. */
  const view = (fold: LockFold) => ({
    locks: Array.from(fold.locks, ([key, { owner, waiters }]) => [
      key,
      owner.id,
      owner.touched,
      owner.fence,
      [...waiters]
    ]),
    seen: Array.from(fold.seen, ([author, { offset }]) => [author, offset]).sort()
  })
  const sorted = ({ locks, seen }: ReturnType<typeof view>) => ({ locks: locks.sort(), seen })

  const epoch = 1_000
  const positionOf = (offset: number, author: string, now: number): Position => ({
    offset,
    fence: epoch + offset,
    author,
    now
  })

  const begun = (first = 0) => {
    const fold = new LockFold()
    fold.begin(first)
    return fold
  }

  /** Instances that write what they know, from where they have read. `each` sees every record as it is appended. */
  const play = (todo: ReadonlyArray<Step>, each: (offset: number, written: Written, now: number) => void) => {
    const log: Array<Written> = []
    const readers = instances.map(() => ({ fold: begun(), next: 0, requests: [] as Array<readonly [string, string]> }))
    let now = 0
    let ids = 0
    const read = (who: number, count: number) => {
      const reader = readers[who]!
      for (; count > 0 && reader.next < log.length; count--, reader.next++) {
        const { author, record } = log[reader.next]!
        reader.fold.apply(positionOf(reader.next, author, now), record)
      }
    }
    for (const step of todo) {
      if (step.op === "pass") {
        now += step.time
        continue
      }
      const reader = readers[step.who]!
      const { fold, requests } = reader
      const author = instances[step.who]!
      const over = (key: string) => {
        const owner = fold.locks.get(key)?.owner
        return owner !== undefined && now > owner.touchedAt + owner.ttl ? owner.touched : undefined
      }
      const record = ((): LogRecord | undefined => {
        switch (step.op) {
          case "read":
            read(step.who, step.count)
            return undefined
          case "request": {
            const id = `${author}.${ids++}`
            requests.unshift([step.key, id])
            return { kind: "request", key: step.key, id, ttl: step.ttl, wait: step.wait, over: over(step.key) }
          }
          case "release":
          case "renew": {
            const request = requests[step.nth]
            if (request === undefined) return undefined
            const [key, id] = request
            return step.op === "renew" ? { kind: "renew", key, id, ttl: step.ttl } : { kind: "release", key, id }
          }
          case "expire": {
            const touched = over(step.key)
            return touched === undefined ? undefined : { kind: "expire", key: step.key, touched }
          }
          case "gone": {
            const seen = fold.seen.get(instances[step.other]!)
            return seen && { kind: "gone", author: instances[step.other]!, seen: seen.offset }
          }
          case "snapshot":
            return fold.snapshot()
          case "bye":
            return { kind: "bye" }
        }
      })()
      if (record === undefined) continue
      const written = { author, record, sent: now, read: reader.next - 1 }
      log.push(written)
      each(log.length - 1, written, now)
    }
    readers.forEach((_, who) => {
      read(who, log.length)
    })
    return { log, folds: readers.map(({ fold }) => fold) }
  }

  it.effect.prop(
    "is the same on every instance, however far each had read when it wrote",
    { todo: steps(Step, 80) },
    ({ todo }) =>
      Effect.sync(() => {
        const { folds } = play(todo, () => {})
        for (const fold of folds) assert.deepStrictEqual(view(fold), view(folds[0]!))
      }),
    { arbitrary: { runs: 500, size: 80 } }
  )

  it.effect.prop(
    "is the same for who begins in the middle, once it knows anything, at every offset",
    { todo: steps(Step, 120), first: int(0, 80), late: int(0, 40) },
    ({ first, todo }) =>
      Effect.sync(() => {
        const everything = begun()
        let newcomer: LockFold | undefined
        play(todo, (offset, { author, record }, now) => {
          everything.apply(positionOf(offset, author, now), record)
          if (offset < first) return
          newcomer ??= begun(first)
          newcomer.apply(positionOf(offset, author, now), record)
          if (newcomer.known) assert.deepStrictEqual(sorted(view(newcomer)), sorted(view(everything)))
          if (first === 0) assert.isTrue(newcomer.known)
        })
      }),
    { arbitrary: { runs: 2_000, size: 120 } }
  )

  it.effect.prop(
    "never two owners, first come first served, fences increase, a renewal that came first is not beaten",
    { todo: steps(Step, 120) },
    ({ todo }) =>
      Effect.sync(() => {
        const fold = begun()
        /** By key: who has it, until when by its own count, and the offset of its last touch. */
        const owners = new Map<string, { readonly id: string; until: number; touched: number }>()
        const fences = new Map<string, number>()
        /** By key, in the order of the log. */
        const line = new Map<string, Array<string>>([
          ["k", []],
          ["l", []]
        ])
        const leave = (key: string, id: string) => {
          line.set(
            key,
            line.get(key)!.filter((other) => other !== id)
          )
        }
        const ttls = new Map<string, number>()
        play(todo, (offset, { author, read, record, sent }, now) => {
          if (record.kind === "request") {
            line.get(record.key)!.push(record.id)
            ttls.set(record.id, record.ttl)
          }
          if (record.kind === "gone" && fold.seen.get(record.author)?.offset === record.seen) {
            for (const key of line.keys()) {
              line.set(
                key,
                line.get(key)!.filter((id) => authorOf(id) !== record.author)
              )
            }
          }
          if (record.kind === "bye") {
            for (const key of line.keys()) {
              line.set(
                key,
                line.get(key)!.filter((id) => authorOf(id) !== author)
              )
            }
          }
          const outcome: Outcome = fold.apply(positionOf(offset, author, now), record)
          if ("key" in record && record.kind !== "fill") {
            const { key } = record
            const before = owners.get(key)
            const after = fold.locks.get(key)?.owner
            if (before !== undefined && before.id !== after?.id) {
              // It is over because it was released, or because its time was up by its own count.
              if (record.kind !== "release" || record.id !== before.id) {
                assert.isAbove(now, before.until, "a second owner within the first one's ttl")
                assert.isAtMost(before.touched, read, "a renewal that the author had not read was beaten")
              }
              owners.delete(key)
            }
            if (record.kind === "release") leave(key, record.id)
            if (after !== undefined && before?.id !== after.id) {
              assert.deepStrictEqual(outcome.granted, { key, id: after.id, fence: after.fence })
              assert.strictEqual(after.id, line.get(key)![0], "first come, first served")
              leave(key, after.id)
              assert.isAbove(after.fence, fences.get(key) ?? 0)
              fences.set(key, after.fence)
              owners.set(key, { id: after.id, until: sent + ttls.get(after.id)!, touched: offset })
            }
            if (record.kind === "request" && !record.wait && after?.id !== record.id) leave(key, record.id)
            if (record.kind === "renew" && outcome.accepted) {
              assert.strictEqual(owners.get(key)?.id, record.id)
              Object.assign(owners.get(key)!, { until: sent + record.ttl, touched: offset })
            }
          }
          for (const [key, ids] of line) {
            // Nobody waits for what is free.
            assert.deepStrictEqual([...(fold.locks.get(key)?.waiters.keys() ?? [])], ids)
          }
        })
      }),
    { arbitrary: { runs: 5_000, size: 120 } }
  )

  it("what it keeps for a snapshot to come has no payloads of caches", () => {
    const fold = begun(1)
    const payload = Payload.fromTree("x")
    const position = { ...positionOf(1, "a", 0), record: payload }
    fold.apply(position, { kind: "set", space: "s", at: 0, ttl: undefined, entries: [{ key: "k", payload }] })
    assert.notInclude(inspect(fold, { depth: 10 }), "Payload")
  })

  it("a lock that is released leaves nothing", () => {
    const fold = begun()
    for (let i = 0; i < 10_000; i++) {
      const id = `a.${i}`
      fold.apply(positionOf(2 * i, "a", 0), { kind: "request", key: `k${i}`, id, ttl: 1, wait: true, over: undefined })
      fold.apply(positionOf(2 * i + 1, "a", 0), { kind: "release", key: `k${i}`, id })
    }
    assert.strictEqual(fold.locks.size, 0)
  })

  it("a grant that is older than the log is held, renewed and expired as before", () => {
    const fold = begun()
    fold.apply(positionOf(0, "a", 0), { kind: "request", key: "k", id: "a.0", ttl: 9, wait: true, over: undefined })
    fold.apply(positionOf(1, "b", 0), { kind: "request", key: "k", id: "b.0", ttl: 9, wait: true, over: undefined })
    const snapshot = fold.snapshot()
    // It knows of the lock only by renewals, and grants nothing.
    const newcomer = begun(100)
    const renew: LogRecord = { kind: "renew", key: "k", id: "a.0", ttl: 9 }
    newcomer.apply(positionOf(100, "a", 50), renew)
    assert.isFalse(newcomer.known)
    // As of before its first record, with a hole: of no use.
    newcomer.apply(positionOf(101, "a", 50), snapshot)
    assert.isFalse(newcomer.known)
    newcomer.apply(positionOf(102, "a", 50), { ...snapshot, asOf: 99 } as LogRecord)
    assert.isTrue(newcomer.known)
    assert.strictEqual(newcomer.locks.get("k")!.owner.touched, 100)
    assert.isFalse(newcomer.apply(positionOf(103, "b", 60), { kind: "expire", key: "k", touched: 0 }).accepted)
    const { granted } = newcomer.apply(positionOf(104, "b", 60), { kind: "expire", key: "k", touched: 100 })
    assert.strictEqual(granted?.id, "b.0")
    assert.isFalse(newcomer.apply(positionOf(105, "a", 60), renew).accepted)
  })

  it("a genesis ends all locks for everybody, unless a snapshot came after it was asked for", () => {
    const request = (id: string): LogRecord => ({ kind: "request", key: "k", id, ttl: 9, wait: true, over: undefined })
    const all = begun()
    const newcomer = begun(1)
    const apply = (offset: number, author: string, record: LogRecord) => {
      for (const fold of [all, newcomer]) fold.apply(positionOf(offset, author, 0), record)
    }
    all.apply(positionOf(0, "a", 0), request("a.0"))
    apply(1, "b", { kind: "ask" })
    apply(2, "a", all.snapshot())
    apply(3, "b", { kind: "genesis", asked: 1 })
    assert.strictEqual(newcomer.locks.get("k")?.owner.id, "a.0")
    assert.strictEqual(all.locks.get("k")?.owner.id, "a.0")
    apply(4, "b", { kind: "ask" })
    // Who begins after the question does not know whether it was answered.
    const later = begun(5)
    later.apply(positionOf(5, "b", 0), { kind: "genesis", asked: 4 })
    assert.isFalse(later.known)
    apply(5, "b", { kind: "genesis", asked: 4 })
    assert.isTrue(newcomer.known)
    assert.strictEqual(all.locks.size + newcomer.locks.size, 0)
    apply(6, "b", request("b.0"))
    assert.deepStrictEqual(view(all), view(newcomer))
  })
})

describe("the fold of the ids", () => {
  const Id = Schema.Literals(["a", "b"])
  const Step = Schema.Union([
    Schema.Struct({ op: Schema.Literal("claim"), id: Id, lives: int(1, 6), dead: Schema.Boolean }),
    // Of the claim that was granted so many grants ago, and of one that may be someone else's by now.
    Schema.Struct({ op: Schema.Literal("live"), ago: int(0, 3), lives: int(1, 6) }),
    Schema.Struct({ op: Schema.Literal("end"), ago: int(0, 3), keep: int(0, 3) }),
    Schema.Struct({ op: Schema.Literal("pass"), time: int(1, 4) }),
    // Some instance repeats what it knew so many records ago.
    Schema.Struct({ op: Schema.Literal("repeat"), ago: int(0, 4) })
  ])
  type Step = typeof Step.Type
  const channel = "jobs"

  /** What the steps append, and what the log answers. */
  const play = (taken: ReadonlyArray<Step>) => {
    const fold = new ClaimFold()
    fold.begin(0)
    const records: Array<QueueRecord> = []
    const granted: Array<{ readonly id: string; readonly token: string }> = []
    const answers: Array<{ readonly id: string; readonly at: number; readonly token: string; readonly dead: boolean }> =
      []
    const refused: typeof answers = []
    const known: Array<ReturnType<ClaimFold["repeat"]>> = []
    let at = 1_000_000
    for (const step of taken) {
      if (step.op === "pass") {
        at += step.time
        continue
      }
      const offset = records.length
      const record = ((): QueueRecord | undefined => {
        switch (step.op) {
          case "claim":
            return {
              kind: "claim",
              channel,
              id: step.id,
              token: `t${offset}`,
              at,
              until: at + step.lives,
              dead: step.dead
            }
          case "live":
          case "end": {
            const claim = granted.at(-1 - step.ago)
            if (claim === undefined) return undefined
            // Where whoever took an id over has run out as well, who had it before may hold it again, or not.
            const current = fold.get(channel, claim.id)
            const isSuperseded = granted.findLast(({ id }) => id === claim.id) !== claim
            if (isSuperseded && !(current !== undefined && current.until > at)) return undefined
            const [state, lives] =
              step.op === "live" ? (["living", step.lives] as const) : (["ended", step.keep] as const)
            return { kind: "keep", channel, ...claim, state, at, until: at + lives }
          }
          case "repeat": {
            const asOf = Math.max(offset - 1 - step.ago, 0)
            return { kind: "kept", at, asOf, claims: known[asOf] ?? [] }
          }
        }
      })()
      if (record === undefined) continue
      records.push(record)
      const verdict = fold.apply(offset, record)
      if (record.kind === "claim") {
        const answer = { id: record.id, at, token: record.token, dead: record.dead }
        if (verdict === "granted") {
          granted.push({ id: record.id, token: record.token })
          answers.push(answer)
        } else refused.push(answer)
      }
      known.push(fold.repeat({ bytes: 0, millis: 0 }, at))
    }
    return { at, fold, granted: answers, records, refused, wall: at }
  }

  const stateOf = (fold: ClaimFold, at: number) =>
    ["a", "b"].map((id) => {
      const claim = fold.get(channel, id)
      return claim !== undefined && claim.until > at ? [claim.token, claim.state, claim.until] : undefined
    })

  it.effect.prop(
    "an id is granted when nobody has it, and to nobody else before that claim has ended or run out",
    { taken: steps(Step, 40) },
    ({ taken }) =>
      Effect.sync(() => {
        const { granted, records, refused } = play(taken)
        /** Until when a claim that was made at `from` holds its id at `at`, as its own records say. */
        const holds = (token: string, id: string, at: number, place: number) => {
          let held: { until: number; ended: boolean } | undefined
          let ended = false
          for (const [offset, record] of records.slice(0, place).entries()) {
            if (record.kind === "claim" && record.token === token) held = { until: record.until, ended: false }
            if (record.kind !== "keep" || record.token !== token || record.id !== id || held === undefined) continue
            // What has ended does not live again, whatever its publisher learns late.
            if (record.state === "living" && ended) continue
            // Too late: the id was someone else's meanwhile.
            const other = granted.some(
              (it) => it.id === id && isLater(it.token, token) && isLater(`t${offset}`, it.token)
            )
            if (other) continue
            ended ||= record.state === "ended"
            held = { until: record.until, ended: record.state === "ended" }
          }
          return held !== undefined && held.until > at ? held : undefined
        }
        const isLater = (a: string, b: string) => Number(a.slice(1)) > Number(b.slice(1))
        for (const [i, { at, dead, id, token }] of granted.entries()) {
          for (const before of granted.slice(0, i)) {
            if (before.id !== id) continue
            const held = holds(before.token, id, at, Number(token.slice(1)))
            const isSuperseded = granted.slice(0, i).some((it) => it.id === id && isLater(it.token, before.token))
            if (isSuperseded) continue
            assert.isTrue(held === undefined || (dead && held.ended), `${token} while ${before.token} holds ${id}`)
          }
        }
        for (const { at, dead, id, token } of refused) {
          const isHeld = granted.some((it) => {
            const held = holds(it.token, id, at, Number(token.slice(1)))
            return it.id === id && held !== undefined && !(dead && held.ended)
          })
          assert.isTrue(isHeld, `${token} is refused for a reason`)
        }
      }),
    { arbitrary: { runs: 5_000, size: 60 } }
  )

  it.effect.prop(
    "who begins to read later knows the same, once another has repeated it, whatever ended meanwhile",
    { before: steps(Step, 30), between: steps(Step, 6) },
    ({ before, between }) =>
      Effect.sync(() => {
        const first = play(before)
        const asOf = first.records.length - 1
        const claims = first.fold.repeat({ bytes: 0, millis: 0 }, first.wall)
        // No second repetition: one that is older brings back what was superseded since, for as long as it was kept.
        const meanwhile = play([...before, ...between.filter(({ op }) => op !== "repeat")]).records.slice(
          first.records.length
        )
        const repeated: QueueRecord = { kind: "kept", at: first.wall, asOf, claims }
        const full = first.fold
        const late = new ClaimFold()
        late.begin(Math.max(asOf, 0))
        for (const [i, record] of [...meanwhile, repeated].entries()) {
          full.apply(first.records.length + i, record)
          late.apply(first.records.length + i, record)
        }
        const at = Math.max(first.wall, ...meanwhile.map((record) => ("at" in record ? record.at : 0)))
        const known = new Set(claims.map(({ token }) => token))
        // One that was claimed meanwhile may have been granted to whoever did not know, and what is told of a claim that
        // was over misleads him.
        const unsure = new Set(
          meanwhile.map((it) => (it.kind === "claim" || (it.kind === "keep" && !known.has(it.token)) ? it.id : ""))
        )
        for (const [i, id] of ["a", "b"].entries()) {
          if (!unsure.has(id)) assert.deepStrictEqual(stateOf(late, at)[i], stateOf(full, at)[i], id)
        }
      }),
    { arbitrary: { runs: 5_000, size: 60 } }
  )

  for (const keep of [0, 10]) {
    it(`a job that ended before its publisher learns that it is stored has ended, with its id kept for ${keep}`, () => {
      const fold = new ClaimFold()
      fold.begin(0)
      const of = (token: string) => ({ channel, id: "a", token })
      const claim = (token: string, at: number, dead = false) =>
        fold.apply(at, { kind: "claim", ...of(token), at, until: at + 10, dead })
      assert.strictEqual(claim("t0", 0), "granted")
      fold.apply(1, { kind: "keep", ...of("t0"), state: "ended", at: 1, until: 1 + keep })
      fold.apply(2, { kind: "keep", ...of("t0"), state: "living", at: 2, until: 1_000 })
      if (keep > 0) assert.deepStrictEqual(claim("t1", 5), { state: "ended", token: "t0" })
      assert.strictEqual(claim("t2", 1 + keep + 1), "granted")
      assert.isTrue(fold.isOver("t0"))
    })
  }

  it("whoever had an id before it ran out changes nothing for who has it now", () => {
    const fold = new ClaimFold()
    fold.begin(0)
    const claim = (token: string, at: number) =>
      fold.apply(at, { kind: "claim", channel, id: "a", token, at, until: at + 10, dead: false })
    assert.deepStrictEqual([claim("t0", 0), claim("t1", 20)], ["granted", "granted"])
    for (const [state, until] of [
      ["living", 99],
      ["ended", 99],
      ["ended", 0]
    ] as const) {
      fold.apply(21, { kind: "keep", channel, id: "a", token: "t0", state, at: 21, until })
      assert.deepStrictEqual(claim("t2", 22), { state: "pending", token: "t1" })
    }
    assert.isTrue(fold.isOver("t0"))
  })

  it("forgets what is over, and remembers as many ends as it was told to", () => {
    const fold = new ClaimFold(100)
    fold.begin(0)
    for (let i = 0; i < 1_000; i++) {
      const claim = { channel, id: `${i}`, token: `t${i}` }
      fold.apply(2 * i, { kind: "claim", ...claim, at: 0, until: 10, dead: false })
      fold.apply(2 * i + 1, { kind: "keep", ...claim, state: "ended", at: 1, until: i % 2 === 0 ? 0 : 1_000 })
    }
    assert.strictEqual(fold.size, 500)
    assert.isTrue(fold.isOver("t999") && fold.isOver("t900") && !fold.isOver("t899"))
    fold.sweep(1_000_000)
    assert.strictEqual(fold.size, 0)
  })

  it("repeats what has not been told of for long, and that only", () => {
    const fold = new ClaimFold()
    fold.begin(0)
    const claim = (id: string, offset: number) =>
      fold.apply(offset, { kind: "claim", channel, id, token: id, at: 0, until: 1_000, dead: false })
    claim("a", 0)
    claim("b", 1)
    fold.pass(100)
    fold.apply(2, { kind: "keep", channel, id: "a", token: "a", state: "living", at: 10, until: 2_000 })
    const ids = (wall: number) => fold.repeat({ bytes: 100, millis: 500 }, wall).map(({ id }) => id)
    assert.deepStrictEqual(ids(20), ["b"])
    assert.deepStrictEqual(ids(510), ["b", "a"])
    assert.deepStrictEqual(ids(1_500), ["a"])
  })
})
