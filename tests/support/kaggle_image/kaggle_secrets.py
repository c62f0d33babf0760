"""What a Kaggle image has under this name: asks the session's secret store over HTTP.

Behaves as the image's client does, with its quirk: every HTTP error is a ``ConnectionError``.
"""

import json
import os
import urllib.error
import urllib.request


class CredentialError(Exception):
    pass


class BackendError(Exception):
    pass


class UserSecretsClient:
    def __init__(self):
        self.token = os.environ.get("KAGGLE_USER_SECRETS_TOKEN")
        if self.token is None:
            raise CredentialError("no token in KAGGLE_USER_SECRETS_TOKEN")

    def get_secret(self, label):
        request = urllib.request.Request(
            os.environ["KAGGLE_URL_BASE"] + "/requests/GetUserSecretByLabelRequest",
            data=json.dumps({"Label": label}).encode(),
            headers={
                "Content-type": "application/json",
                "X-Kaggle-Authorization": f"Bearer {self.token}",
            },
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                answer = json.loads(response.read())
        except urllib.error.URLError as error:
            raise ConnectionError("could not reach the service") from error
        if not answer.get("wasSuccessful") or "result" not in answer:
            raise BackendError(f"unexpected response: {answer}")
        return answer["result"]["secret"]
