"""Preprocessing: conversion of a request to a prompt for the language model."""
