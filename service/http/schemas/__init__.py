"""The JSON bodies of requests and answers, as documented in /docs. Strict: no coercion, no unknown fields, no NaN.

One file for each kind of thing. The types of single values are in `service.http.fields`; the bodies that ask for
recommendations are in `service.http.requests`. A request is a `Schema`: its error report names the field and the
reason, never the value. The body of an answer is a `ResponseSchema` (`base.py`) and can be made from an object of a use
case: `UserPage.model_validate(page)` reads its attributes. The report of a long list names its first wrong element
only: thousands of reports would take longer than the request.
"""
