/**
 * Random numbers with a seed: integer arithmetic only (sfc32), so that a seed gives the same
 * numbers on every engine.
 */
import * as SecureRandom from "effect/crypto/SecureRandom"
import type * as Random from "effect/Random"

export class Prng implements Random.Random {
  private a: number
  private b: number
  private c: number
  private count = 1

  constructor(seed: number | string) {
    // FNV-1a over the text, so that neighbouring seeds have nothing in common.
    let hash = 0x811c9dc5
    for (const char of String(seed)) hash = Math.imul(hash ^ char.codePointAt(0)!, 0x01000193) >>> 0
    this.a = hash
    this.b = Math.imul(hash ^ 0x9e3779b9, 0x85ebca6b) >>> 0
    this.c = Math.imul(hash ^ 0xc2b2ae35, 0x27d4eb2f) >>> 0
    for (let i = 0; i < 16; i++) this.next()
  }

  /** 32 random bits. */
  next(): number {
    const sum = (this.a + this.b + this.count++) | 0
    this.a = this.b ^ (this.b >>> 9)
    this.b = (this.c + (this.c << 3)) | 0
    this.c = (((this.c << 21) | (this.c >>> 11)) + sum) | 0
    return sum >>> 0
  }

  nextDoubleUnsafe(): number {
    return ((this.next() >>> 6) * 0x8000000 + (this.next() >>> 5)) / 0x20000000000000
  }

  nextIntUnsafe(): number {
    const magnitude = (this.next() & 0x1fffff) * 0x100000000 + this.next()
    return this.next() & 1 ? magnitude : -magnitude
  }

  /** A whole number from `min` to `max`, both included. */
  between(min: number, max: number): number {
    return min + Math.floor(this.nextDoubleUnsafe() * (max - min + 1))
  }

  chance(probability: number): boolean {
    return probability > 0 && this.nextDoubleUnsafe() < probability
  }

  pick<A>(items: ReadonlyArray<A>): A {
    return items[this.between(0, items.length - 1)]!
  }

  bytes(size: number): Uint8Array {
    return Uint8Array.from({ length: size }, () => this.next() & 0xff)
  }

  readonly uuid = (): string => {
    const hex = Array.from(this.bytes(16), (byte, i) =>
      (i === 6 ? (byte & 0x0f) | 0x40 : i === 8 ? (byte & 0x3f) | 0x80 : byte).toString(16).padStart(2, "0")
    ).join("")
    return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-")
  }

  secure(): SecureRandom.SecureRandom["Service"] {
    return SecureRandom.make((size) => this.bytes(size))
  }
}
