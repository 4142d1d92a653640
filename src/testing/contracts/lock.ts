/** The contract of `Lock` (design §4.5), for every backend. */
import type { Backend } from "./Backend.ts"
import * as Actors from "./lock/actors.ts"
import * as Exclusion from "./lock/exclusion.ts"
import * as Fixture from "./lock/fixture.ts"
import * as Leases from "./lock/leases.ts"
import * as Refusals from "./lock/refusals.ts"
import * as Waiting from "./lock/waiting.ts"
import * as Work from "./lock/work.ts"
import { describeOn } from "./support.ts"

export const suite = (backend: Backend, options: { readonly propertyRuns?: number | undefined } = {}): void => {
  const on = Fixture.make(backend)
  describeOn(backend, "Lock", () => {
    Exclusion.tests(on)
    Leases.tests(on)
    Waiting.tests(on)
    Work.tests(on)
    Refusals.tests(on)
    Actors.tests(on, options.propertyRuns)
  })
}
