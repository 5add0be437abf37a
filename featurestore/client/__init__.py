"""Clients of the HTTP service, with the methods and results of the local API. They load Arrow when the first table is there."""

from featurestore.client.clients import AsyncFeatureStoreClient, FeatureStoreClient
from featurestore.client.results import RemoteTrainingSet, RemoteVectors, TrainingSetJob

__all__ = ["AsyncFeatureStoreClient", "FeatureStoreClient", "RemoteTrainingSet", "RemoteVectors", "TrainingSetJob"]
