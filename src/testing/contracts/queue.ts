/**
 * The contract of EventQueue: every sentence of its guarantees, on any backend.
 *
 * Times are short where the backend has to live through them; the long defaults
 * (30 seconds and the like) are tested where time is virtual.
 */
import type { Backend } from "./Backend.ts"
import * as Attempts from "./queue/attempts.ts"
import * as Closing from "./queue/closing.ts"
import * as Dead from "./queue/dead.ts"
import * as Fixture from "./queue/fixture.ts"
import * as Histories from "./queue/histories.ts"
import * as Leases from "./queue/leases.ts"
import * as Publishing from "./queue/publishing.ts"
import * as Refusals from "./queue/refusals.ts"
import * as Taking from "./queue/taking.ts"
import { describeOn } from "./support.ts"

export const suite = (backend: Backend, options: { readonly propertyRuns?: number | undefined } = {}): void => {
  const on = Fixture.make(backend)
  describeOn(backend, "EventQueue", () => {
    Publishing.tests(on)
    Attempts.tests(on)
    Taking.tests(on)
    Leases.tests(on)
    Closing.tests(on)
    Dead.tests(on)
    Refusals.tests(on)
    Histories.tests(on, options.propertyRuns)
  })
}
